//! `postmaster.pid`, the file in which a server says who it is and how far it has come.

/// What this crate reads of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PostmasterPid {
    /// The server's process, line 1. Negative for a stand-alone backend.
    pub(crate) pid: i32,
    /// Whether line 8 says that connections are taken.
    pub(crate) ready: bool,
}

impl PostmasterPid {
    /// `None` when there is no process number yet: the server writes the file in several steps.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        let ready = lines.nth(6).is_some_and(|status| status.trim() == "ready");
        Some(Self { pid, ready })
    }
}

#[cfg(test)]
mod tests {
    use super::PostmasterPid;

    const FILE: &str = "4711\n/d/data\n1764000000\n5432\n/d/socket\n\n  5432001   98304\nready   \n";

    #[test]
    fn ready_stands_on_line_eight() {
        assert_eq!(PostmasterPid::parse(FILE), Some(PostmasterPid { pid: 4711, ready: true }));
        let starting = FILE.replace("ready   ", "starting");
        assert_eq!(PostmasterPid::parse(&starting), Some(PostmasterPid { pid: 4711, ready: false }));
    }

    #[test]
    fn a_file_in_the_making_is_not_ready() {
        assert_eq!(PostmasterPid::parse(""), None);
        assert_eq!(PostmasterPid::parse("4711\n/d/data\n"), Some(PostmasterPid { pid: 4711, ready: false }));
        // A folder named `ready` is not the status line.
        assert_eq!(PostmasterPid::parse("4711\nready\n"), Some(PostmasterPid { pid: 4711, ready: false }));
    }
}
