//! The account that a caller in a log gets.

use nexus_core::id::{EcoId, IdError};
use sha2::{Digest, Sha256};

/// Characters of an account id after `eco_`.
const LONGEST: usize = 60;
const DIGEST_CHARS: usize = 16;

/// `eco_` and the caller's name. A name with characters that an id cannot have, or that is too long, is
/// cleaned and gets a digest, so that two callers never share an account.
pub(super) fn id(caller: &str) -> Result<EcoId, IdError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    if caller.len() <= LONGEST && caller.chars().all(allowed) {
        return EcoId::parse(&format!("eco_{caller}"));
    }
    let clean: String =
        caller.chars().map(|c| if allowed(c) { c } else { '-' }).take(LONGEST - DIGEST_CHARS - 1).collect();
    let digest = hex(&Sha256::digest(caller.as_bytes())[..DIGEST_CHARS / 2]);
    EcoId::parse(&format!("eco_{clean}-{digest}"))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_never_share_an_account() -> Result<(), IdError> {
        assert_eq!(id("192.0.2.7")?.as_str(), "eco_192.0.2.7");
        assert_eq!(id("2001:db8::1")?.as_str(), "eco_2001:db8::1");
        assert_ne!(id("a b")?, id("a-b")?);
        assert_ne!(id("a b")?, id("a/b")?);
        let long = "x".repeat(100);
        assert_ne!(id(&long)?, id(&format!("{long}y"))?);
        assert_eq!(id(&long)?.as_str().len(), 64);
        assert!(id("").is_err());
        Ok(())
    }
}
