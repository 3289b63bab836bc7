//! The documentation, held against itself: a page that is moved, or a heading that is renamed, must not leave links that
//! lead nowhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{Context, Result};
use regex::Regex;

/// What a link leads to.
static LINK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern"));
/// Code in a line.
static CODE: LazyLock<Regex> = LazyLock::new(|| Regex::new("`[^`]*`").expect("a pattern"));

#[test]
fn relative_links_resolve_and_every_page_of_the_reference_is_linked() -> Result<()> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize()?;
    let pages = pages(&root)?;
    let reference = root.join("docs");
    let (mut broken, mut from_readme) = (Vec::new(), BTreeSet::new());
    for page in &pages {
        let folder = page.parent().context("a page is in a folder")?;
        for (number, link) in links(&fs::read_to_string(page)?) {
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(p, a)| (p, Some(a)));
            let target = if path.is_empty() { page.clone() } else { folder.join(path) };
            let leads = target.exists()
                && match anchor {
                    Some(anchor) => anchors(&fs::read_to_string(&target)?).contains(anchor),
                    None => true,
                };
            if !leads {
                broken.push(format!("{}:{number}: {link}", page.strip_prefix(&root)?.display()));
            } else if *page == root.join("README.md") {
                from_readme.insert(target.canonicalize()?);
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    let missing: Vec<_> =
        pages.iter().filter(|p| p.starts_with(&reference) && !from_readme.contains(*p)).collect();
    assert!(missing.is_empty(), "README.md links to none of {missing:?}");
    assert!(pages.iter().any(|page| page.starts_with(&reference)), "the reference is in {reference:?}");
    Ok(())
}

/// All pages of the repository: of this folder and those below, but what is built or hidden.
fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?.to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(pages(&path)?);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The lines of a page, numbered, without those of code.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// Links into the repository, with their lines.
fn links(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(page) {
        // The text of a link may be code; what it leads to is not.
        let line = CODE.replace_all(line, "");
        let leads_to = LINK.captures_iter(&line).map(|link| link[1].to_owned());
        found.extend(leads_to.filter(|to| !to.contains("://")).map(|to| (number, to)));
    }
    found
}

/// What links may name of a page: its headings as code hosts write them in addresses.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).filter_map(|(_, line)| {
        line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
    });
    headings
        .map(|heading| {
            let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}
