//! Charts as SVG, drawn by plotters, in two sizes, of which the style sheet shows one. Colours are stand-ins that the
//! style sheet replaces, so that a chart follows the theme. Each bar says what it is; a table beside it says it all.

use std::fmt::Write;

use maud::{Escaper, Markup, PreEscaped, html};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::error::Error;

const FIRST: RGBColor = RGBColor(1, 0, 0);
const SECOND: RGBColor = RGBColor(2, 0, 0);
const TEXT: RGBColor = RGBColor(3, 0, 0);
const GRID: RGBColor = RGBColor(4, 0, 0);

/// Two sizes: for a page of full width, and for a phone's.
const SIZES: [Size; 2] = [
    Size { class: "chart wide", width: 960, height: 240, labels: 8 },
    Size { class: "chart slim", width: 360, height: 200, labels: 4 },
];

struct Size {
    class: &'static str,
    width: u32,
    height: u32,
    /// Labels under the bars at most.
    labels: usize,
}

/// One bar, of two parts: the second stands on the first.
pub struct Bar {
    /// Under it, where there is room.
    pub label: String,
    /// What it says when it is pointed at.
    pub title: String,
    /// Its parts.
    pub parts: [i64; 2],
}

/// A chart of bars. `title` and `description` are what it says to who does not see it.
pub fn bars(
    title: &str,
    description: &str,
    bars: &[Bar],
    scale: impl Fn(i64) -> String,
) -> Result<Markup, Error> {
    let mut drawn = String::new();
    for size in &SIZES {
        let svg = draw(size, bars, &scale).map_err(|e| Error::Internal(format!("a chart: {e}")))?;
        drawn.push_str(&labelled(&svg, size, title, description));
    }
    Ok(html! { div class="charts" { (PreEscaped(drawn)) } })
}

/// What plotters made, with a name, and with the bars' words over it.
fn labelled(drawn: &Drawn, size: &Size, title: &str, description: &str) -> String {
    let start = drawn.svg.find("<svg ").map_or(0, |at| at + "<svg ".len());
    let inside = drawn.svg.find('>').map_or(drawn.svg.len(), |at| at + 1);
    let end = drawn.svg.rfind("</svg>").unwrap_or(drawn.svg.len());
    let mut svg = format!(r#"<svg class="{}" role="img" aria-label=""#, size.class);
    escape(&mut svg, &format!("{title}. {description}"));
    svg.push_str(r#"" "#);
    svg.push_str(&drawn.svg[start..inside]);
    svg.push_str("<desc>");
    escape(&mut svg, description);
    svg.push_str("</desc>");
    svg.push_str(&drawn.svg[inside..end]);
    for Hit { x, width, title } in &drawn.hits {
        let height = size.height;
        // Writing to a string cannot fail.
        let _ = write!(svg, r#"<rect class="hit" x="{x}" y="0" width="{width}" height="{height}"><title>"#);
        escape(&mut svg, title);
        svg.push_str("</title></rect>");
    }
    svg.push_str("</svg>");
    svg
}

fn escape(into: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = Escaper::new(into).write_str(text);
}

struct Drawn {
    svg: String,
    hits: Vec<Hit>,
}

struct Hit {
    x: i32,
    width: i32,
    title: String,
}

fn draw(
    size: &Size,
    bars: &[Bar],
    scale: &impl Fn(i64) -> String,
) -> Result<Drawn, Box<dyn std::error::Error + Send + Sync>> {
    let largest = bars.iter().map(|bar| bar.parts[0] + bar.parts[1]).max().unwrap_or(0);
    let top = round_up(largest.max(4));
    let mut svg = String::new();
    let mut hits = Vec::with_capacity(bars.len());
    {
        let root = SVGBackend::with_string(&mut svg, (size.width, size.height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(10)
            .margin_right(6)
            .x_label_area_size(26)
            .y_label_area_size(56)
            .build_cartesian_2d(0f64..bars.len().max(1) as f64, 0f64..top as f64)?;
        let label = ("sans-serif", 13).into_font().color(&TEXT);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_labels(5)
            .y_label_formatter(&|value| scale(value.round() as i64))
            .y_label_style(label.clone())
            .axis_style(TRANSPARENT)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .draw()?;
        let gap = if bars.len() > 90 { 0.05 } else { 0.15 };
        let rectangle = |i: usize, from: i64, to: i64, color: RGBColor| {
            let (left, right) = (i as f64 + gap, (i + 1) as f64 - gap);
            Rectangle::new([(left, from as f64), (right, to as f64)], color.filled())
        };
        let of_parts = bars.iter().enumerate().flat_map(|(i, bar)| {
            let [first, second] = bar.parts;
            [(first, rectangle(i, 0, first, FIRST)), (second, rectangle(i, first, first + second, SECOND))]
        });
        chart.draw_series(of_parts.filter(|(part, _)| *part > 0).map(|(_, rectangle)| rectangle))?;
        let style = label.pos(Pos::new(HPos::Center, VPos::Top));
        let every = bars.len().div_ceil(size.labels).max(1);
        let labels = bars.iter().enumerate().skip((bars.len().max(1) - 1) % every).step_by(every);
        chart.draw_series(labels.map(|(i, bar)| {
            EmptyElement::at((i as f64 + 0.5, 0f64)) + Text::new(bar.label.clone(), (0, 8), style.clone())
        }))?;
        for (i, bar) in bars.iter().enumerate() {
            let (x, _) = chart.backend_coord(&(i as f64, 0f64));
            let (right, _) = chart.backend_coord(&((i + 1) as f64, 0f64));
            hits.push(Hit { x, width: (right - x).max(1), title: bar.title.clone() });
        }
        root.present()?;
    }
    Ok(Drawn { svg, hits })
}

/// The end of an axis: the next number that is easy to read.
fn round_up(largest: i64) -> i64 {
    let power = 10i64.saturating_pow(largest.max(1).ilog10());
    let steps = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100];
    steps
        .into_iter()
        .map(|tenths| power.saturating_mul(tenths) / 10)
        .find(|top| *top >= largest)
        .unwrap_or(i64::MAX)
}

/// A count on an axis: `1.5k`, `20M`.
pub fn compact(count: i64) -> String {
    let in_units = |unit: i64, name: &str| {
        let tenths = count / (unit / 10);
        if tenths % 10 == 0 {
            format!("{}{name}", tenths / 10)
        } else {
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        }
    };
    match count.unsigned_abs() {
        ..1_000 => count.to_string(),
        1_000..1_000_000 => in_units(1_000, "k"),
        1_000_000..1_000_000_000 => in_units(1_000_000, "M"),
        _ => in_units(1_000_000_000, "G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([4, 10, 11, 99, 101, 1_340].map(round_up), [4, 10, 12, 100, 120, 1_500]);
        assert!(round_up(i64::MAX) >= i64::MAX / 2);
    }

    #[test]
    fn counts_on_an_axis_are_short() {
        let shown = [0, 999, 1_000, 1_500, 120_000, 2_500_000, 3_000_000_000].map(compact);
        assert_eq!(shown, ["0", "999", "1k", "1.5k", "120k", "2.5M", "3G"]);
    }

    #[test]
    fn a_chart_says_what_it_shows_and_has_nothing_inline() -> Result<(), Error> {
        let bar = Bar { label: "1 Dec".to_owned(), title: "1 Dec: 5 <calls>".to_owned(), parts: [4, 1] };
        let svg = bars("Calls", "a & b", &[bar], compact)?.into_string();
        assert_eq!(svg.matches("<svg ").count(), 2);
        assert_eq!(svg.matches("<title>1 Dec: 5 &lt;calls&gt;</title>").count(), 2);
        assert!(svg.contains(r#"aria-label="Calls. a &amp; b""#), "{svg}");
        for stand_in in
            [r##"fill="#010000""##, r##"fill="#020000""##, r##"fill="#030000""##, r##"stroke="#040000""##]
        {
            assert!(svg.contains(stand_in), "{stand_in}: {svg}");
        }
        assert!(!svg.contains("style=") && !svg.contains("<style"), "{svg}");
        assert!(bars("None", "nothing", &[], compact).is_ok());
        Ok(())
    }
}
