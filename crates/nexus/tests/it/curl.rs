//! Lines with curl, done without it.

use anyhow::{Context, Result};

/// Does what a line has curl do.
pub(crate) async fn replay(line: &str) -> Result<reqwest::StatusCode> {
    let mut words = shell_words(line).into_iter().skip(1);
    let (mut method, mut headers, mut url) = (reqwest::Method::GET, Vec::new(), None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-i" => {}
            "-X" => method = words.next().context("a method")?.parse()?,
            "-H" => headers.push(words.next().context("a header")?),
            _ => url = Some(word),
        }
    }
    let mut request = nexus_testkit::http::client().request(method, url.context("a URL")?);
    for header in &headers {
        let (name, value) = header.split_once(": ").context("a header is a name and a value")?;
        request = request.header(name, value);
    }
    Ok(request.send().await?.status())
}

/// Words of a line in which only single quotes quote.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (i, part) in line.split('\'').enumerate() {
        let quoted = i % 2 == 1;
        for (j, piece) in part.split(' ').enumerate() {
            if j > 0 && !quoted {
                words.push(String::new());
            }
            let blank = if j > 0 && quoted { " " } else { "" };
            let last = words.len() - 1;
            words[last].push_str(&format!("{blank}{piece}"));
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
