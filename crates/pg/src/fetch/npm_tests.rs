//! The links that npm loses.

use super::restore_links;
use std::fs;
use std::path::Path;

fn package(list: &str) -> std::io::Result<tempfile::TempDir> {
    let package = tempfile::tempdir()?;
    fs::create_dir_all(package.path().join("native/lib"))?;
    fs::write(package.path().join("native/lib/libpq.so.5.18"), "library")?;
    fs::write(package.path().join("native/pg-symlinks.json"), list)?;
    Ok(package)
}

#[test]
fn lost_links_are_made_relative_and_twice_is_fine() -> anyhow::Result<()> {
    let package = package(r#"[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]"#)?;
    for _ in 0..2 {
        restore_links(package.path()).map_err(anyhow::Error::msg)?;
    }
    let link = package.path().join("native/lib/libpq.so.5");
    assert_eq!(fs::read_link(&link)?, Path::new("libpq.so.5.18"));
    assert_eq!(fs::read_to_string(&link)?, "library");
    Ok(())
}

#[test]
fn a_link_out_of_its_folder_is_refused() -> anyhow::Result<()> {
    for (source, target) in [
        ("native/lib/libpq.so.5.18", "../libpq.so.5"),
        ("native/lib/libpq.so.5.18", "/tmp/libpq.so.5"),
        ("/etc/passwd", "native/lib/x"),
        ("native/lib/libpq.so.5.18", "native/bin/postgres"),
    ] {
        let package = package(&format!(r#"[{{"source":"{source}","target":"{target}"}}]"#))?;
        assert!(restore_links(package.path()).is_err(), "{source} <- {target}");
    }
    Ok(())
}

#[test]
fn a_package_without_its_list_is_not_whole() -> anyhow::Result<()> {
    let package = tempfile::tempdir()?;
    assert!(restore_links(package.path()).is_err());
    Ok(())
}
