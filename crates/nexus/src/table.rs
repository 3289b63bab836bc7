//! Tables of rows that come page by page: later pages look like the first. They keep within the terminal; elsewhere
//! nothing is left out or broken.

use std::io::stdout;

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, Table as Layout, Width, presets::NOTHING,
};

use crate::text::harmless;

/// Blanks between two columns.
const GAP: u16 = 2;

/// A column.
pub(crate) struct Column {
    title: &'static str,
    alignment: CellAlignment,
    /// How soon it is left out where there is no room for all; 0: never.
    spare: u8,
}

impl Column {
    /// One of texts.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self { title, alignment: CellAlignment::Left, spare: 0 }
    }

    /// One of numbers.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title, alignment: CellAlignment::Right, spare: 0 }
    }

    /// It is left out where there is no room for it, those of a higher rank first.
    pub(crate) const fn spare(self, rank: u8) -> Self {
        Self { spare: rank, ..self }
    }
}

/// A table that is being printed.
pub(crate) struct Table {
    columns: &'static [Column],
    /// Of the terminal.
    width: Option<u16>,
    /// Of each column as it was in the first page; none: it is left out.
    widths: Option<Vec<Option<u16>>>,
}

impl Table {
    /// One for the standard output.
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        // None where it is no terminal.
        let size = terminal_size::terminal_size_of(stdout());
        Self::within(columns, size.map(|(terminal_size::Width(width), _)| width))
    }

    fn within(columns: &'static [Column], width: Option<u16>) -> Self {
        Self { columns, width, widths: None }
    }

    /// Rows as lines; the first time below the titles.
    pub(crate) fn lines(&mut self, rows: impl IntoIterator<Item = Vec<String>>) -> String {
        let mut layout = Layout::new();
        layout.load_style(NOTHING);
        if self.widths.is_none() {
            layout.set_header(self.columns.iter().map(|column| column.title));
        }
        layout.add_rows(
            rows.into_iter().map(|cells| cells.iter().map(|cell| harmless(cell)).collect::<Vec<_>>()),
        );
        if let Some(width) = self.width {
            layout.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        }
        let now = layout.column_max_content_widths();
        let widths = self.widths.get_or_insert_with(|| fitting(self.columns, &now, self.width));
        let last = widths.iter().rposition(Option::is_some);
        for (i, (column, width)) in layout.column_iter_mut().zip(widths.iter()).enumerate() {
            let gap = if Some(i) == last { 0 } else { GAP };
            column.set_padding((0, gap));
            column.set_cell_alignment(self.columns[i].alignment);
            column.set_constraint(match width {
                Some(width) => ColumnConstraint::LowerBoundary(Width::Fixed(width + gap)),
                None => ColumnConstraint::Hidden,
            });
        }
        let mut text = layout.trim_fmt();
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    /// Titles of the columns that are left out.
    pub(crate) fn left_out(&self) -> Vec<&'static str> {
        let widths = self.widths.iter().flatten();
        self.columns.iter().zip(widths).filter(|(_, width)| width.is_none()).map(|(c, _)| c.title).collect()
    }
}

/// Widths of the columns there is room for.
fn fitting(columns: &[Column], widths: &[u16], room: Option<u16>) -> Vec<Option<u16>> {
    let mut shown: Vec<_> = widths.iter().copied().map(Some).collect();
    let Some(room) = room else { return shown };
    let mut spare: Vec<_> = (0..shown.len()).filter(|i| columns[*i].spare > 0).collect();
    spare.sort_by_key(|i| columns[*i].spare);
    let needed = |shown: &[Option<u16>]| {
        let widths = shown.iter().flatten().map(|width| u32::from(*width) + u32::from(GAP));
        widths.sum::<u32>().saturating_sub(GAP.into())
    };
    while needed(&shown) > room.into() {
        let Some(i) = spare.pop() else { break };
        shown[i] = None;
    }
    // What is not left out shares the room that there is.
    if needed(&shown) > room.into() {
        shown.iter_mut().flatten().for_each(|width| *width = 0);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::text("account"),
        Column::number("calls"),
        Column::text("email").spare(1),
        Column::text("seen").spare(2),
    ];

    fn row(cells: [&str; 4]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn later_pages_stand_below_the_first() {
        let mut table = Table::within(COLUMNS, None);
        let first = table.lines([row(["eco_long_name", "1,234", "a@example.com", "today"])]);
        assert_eq!(
            first,
            "account        calls  email          seen\neco_long_name  1,234  a@example.com  today\n"
        );
        let second = table.lines([row(["eco_b", "5", "", "never"])]);
        assert_eq!(second, "eco_b              5                 never\n");
        let wider = table.lines([row(["eco_a_still_longer_name", "5", "é", "never"])]);
        assert_eq!(wider, "eco_a_still_longer_name      5  é              never\n");
        assert!(table.left_out().is_empty());
    }

    #[test]
    fn where_there_is_no_room_for_all_columns_some_are_left_out() {
        let rows = || [row(["eco_long_name", "1,234", "a@example.com", "today"])];
        for (width, lines, left_out) in [
            (
                42,
                "account        calls  email          seen\neco_long_name  1,234  a@example.com  today\n",
                &[][..],
            ),
            (41, "account        calls  email\neco_long_name  1,234  a@example.com\n", &["seen"]),
            (34, "account        calls\neco_long_name  1,234\n", &["email", "seen"]),
        ] {
            let mut table = Table::within(COLUMNS, Some(width));
            assert_eq!(table.lines(rows()), lines, "{width}");
            assert_eq!(table.left_out(), left_out);
        }
        let mut narrow = Table::within(COLUMNS, Some(14));
        let lines = narrow.lines(rows());
        assert!(lines.lines().all(|line| line.len() <= 14), "{lines}");
        let letters: String = lines.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(letters.len(), "accountcallseco_long_name1,234".len(), "nothing is lost: {lines}");
    }

    #[test]
    fn no_rows_are_the_titles_alone() {
        assert_eq!(Table::within(COLUMNS, None).lines([]), "account  calls  email  seen\n");
    }
}
