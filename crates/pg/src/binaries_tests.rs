//! The order of search and the choice of a version, over folders made for the test.

use super::{Binaries, Version, choose, find_bin, has_programs, installed_dirs};
use crate::{Error, Options};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder with the two programs; only their first bytes are looked at here.
fn programs(dir: &Path, start: &[u8]) -> std::io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    for name in ["postgres", "initdb"] {
        fs::write(dir.join(name), start)?;
    }
    fs::canonicalize(dir)
}

const ELF: &[u8] = b"\x7fELF";

fn at(major: u32, minor: u32) -> Binaries {
    Binaries { dir: PathBuf::from(format!("/pg/{major}.{minor}/bin")), version: Version { major, minor } }
}

fn version_of(binaries: Option<Binaries>) -> Option<(u32, u32)> {
    binaries.map(|it| (it.version.major, it.version.minor))
}

#[test]
fn versions_are_read_as_postgres_prints_them() {
    let parse = |text| Version::parse(text).map(|it| (it.major, it.minor));
    assert_eq!(parse("postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n"), Some((15, 8)));
    assert_eq!(parse("initdb (PostgreSQL) 18.6\n"), Some((18, 6)));
    assert_eq!(parse("postgres (PostgreSQL) 19devel\n"), Some((19, 0)));
    assert_eq!(parse("no version here"), None);
}

#[test]
fn the_newest_installed_is_chosen_and_numbers_are_not_compared_as_text() -> Result<(), Error> {
    assert_eq!(version_of(choose(vec![at(15, 8), at(15, 10), at(9, 6)], vec![], None)?), Some((15, 10)));
    assert_eq!(version_of(choose(vec![], vec![], None)?), None);
    Ok(())
}

#[test]
fn the_cache_serves_only_what_is_not_installed() -> Result<(), Error> {
    assert_eq!(version_of(choose(vec![at(15, 8)], vec![at(18, 6)], None)?), Some((15, 8)));
    assert_eq!(version_of(choose(vec![], vec![at(18, 6)], None)?), Some((18, 6)));
    let data = Path::new("/d");
    assert_eq!(version_of(choose(vec![at(15, 8)], vec![at(18, 6)], Some((18, data)))?), Some((18, 6)));
    Ok(())
}

#[test]
fn data_of_another_major_version_wants_its_own_programs() -> Result<(), Error> {
    let data = Path::new("/d");
    assert_eq!(version_of(choose(vec![at(17, 1), at(15, 8)], vec![], Some((15, data)))?), Some((15, 8)));
    let refused = choose(vec![at(15, 8), at(17, 1)], vec![], Some((16, data)));
    let Err(error @ Error::MajorMismatch { .. }) = refused else { panic!("{refused:?}") };
    let text = error.to_string();
    assert!(text.contains("PostgreSQL 16") && text.contains("17.1, 15.8"), "{text}");
    Ok(())
}

#[test]
fn the_system_comes_before_the_search_path_and_links_are_resolved() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let system = root.path().join("system");
    let of_system = programs(&system.join("15/bin"), ELF)?;
    let elsewhere = programs(&root.path().join("opt/pg/bin"), ELF)?;
    let wrappers = programs(&root.path().join("wrappers"), b"#!/bin/sh\nexec su postgres\n")?;
    let links = root.path().join("links");
    fs::create_dir(&links)?;
    symlink(elsewhere.join("postgres"), links.join("postgres"))?;
    symlink(of_system.join("postgres"), root.path().join("postgres"))?;

    let mut options = Options::ephemeral();
    options.system_dir = system;
    options.search_path = Some(std::env::join_paths([&wrappers, &links, &root.path().to_owned()])?);
    assert_eq!(installed_dirs(&options), [of_system, elsewhere]);
    Ok(())
}

#[test]
fn half_an_installation_is_none() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let bin = programs(&root.path().join("a/b/bin"), ELF)?;
    assert_eq!(find_bin(&fs::canonicalize(root.path())?, 5)?, Some(bin.clone()));
    assert_eq!(find_bin(root.path(), 1)?, None, "no deeper than asked");
    fs::remove_file(bin.join("initdb"))?;
    assert!(!has_programs(&bin));
    assert_eq!(find_bin(root.path(), 5)?, None);
    Ok(())
}
