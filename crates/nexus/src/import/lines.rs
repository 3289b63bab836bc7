//! The file, line by line, never all of it in memory; its digest.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

/// Longer lines are cut here; none of ours is, so such a line is malformed.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// Reads lines, counting them from 1.
pub(super) struct Lines {
    file: BufReader<File>,
    digest: Sha256,
    buffer: Vec<u8>,
    number: u64,
    bytes: u64,
}

/// A line.
pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: u64,
    /// Without its end; `None`: too long.
    pub(super) text: Option<&'a [u8]>,
    /// Bytes of the file up to and with this line.
    pub(super) position: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(256 * 1024, File::open(path)?);
        Ok(Self { file, digest: Sha256::new(), buffer: Vec::new(), number: 0, bytes: 0 })
    }

    /// The next line; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let limit = LONGEST_LINE as u64 + 1;
        let read = (&mut self.file).take(limit).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.take(read);
        self.number += 1;
        if self.buffer.last() != Some(&b'\n') && self.buffer.len() > LONGEST_LINE {
            self.skip_rest()?;
            return Ok(Some(Line { number: self.number, text: None, position: self.bytes }));
        }
        let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        Ok(Some(Line { number: self.number, text: Some(text), position: self.bytes }))
    }

    /// The digest of all that was read: of the file, at its end.
    pub(super) fn digest(self) -> [u8; 32] {
        self.digest.finalize().into()
    }

    fn take(&mut self, read: usize) {
        self.digest.update(&self.buffer);
        self.bytes += read as u64;
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            let read = (&mut self.file).take(LONGEST_LINE as u64).read_until(b'\n', &mut self.buffer)?;
            self.take(read);
            if read == 0 || self.buffer.last() == Some(&b'\n') {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_long_lines_and_the_digest() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("log");
        let long = "x".repeat(3 * LONGEST_LINE);
        let content = format!("one\r\n\n{long}\nlast");
        std::fs::write(&path, &content)?;
        let mut lines = Lines::open(&path)?;
        let mut seen = Vec::new();
        while let Some(line) = lines.next()? {
            seen.push((line.number, line.text.map(<[u8]>::to_vec), line.position));
        }
        let size = content.len() as u64;
        assert_eq!(
            seen,
            [
                (1, Some(b"one".to_vec()), 5),
                (2, Some(b"".to_vec()), 6),
                (3, None, size - 4),
                (4, Some(b"last".to_vec()), size),
            ]
        );
        let whole: [u8; 32] = Sha256::digest(content.as_bytes()).into();
        assert_eq!(lines.digest(), whole);
        Ok(())
    }
}
