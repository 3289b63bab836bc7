//! The data folder: one run at a time, and the secrets of this installation, made once.
//!
//! ```text
//! <data folder>/lock           held for as long as a run uses it
//!               secrets.json   0600
//!               postgres/      the private cluster
//!               stripe.jsonl   what the stand-in Stripe holds
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rand::{Rng, distr::Alphanumeric};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DevArgs;

/// The folder of a run; none for an ephemeral one.
pub(crate) struct Folder {
    root: Option<PathBuf>,
    secrets: Secrets,
    _lock: Option<File>,
}

/// Secrets of this installation.
#[derive(Serialize, Deserialize)]
pub(crate) struct Secrets {
    /// Signs users' tokens.
    #[serde(default = "random", with = "exposed")]
    pub(crate) jwt: SecretString,
    /// Signs service tokens.
    #[serde(default = "random", with = "exposed")]
    pub(crate) service_token: SecretString,
    /// What the scheduler shows.
    #[serde(default = "random", with = "exposed")]
    pub(crate) cron: SecretString,
    /// The demo accounts' API keys come from it.
    #[serde(default = "random", with = "exposed")]
    pub(crate) demo_api_keys: SecretString,
    /// Key of the stand-in Stripe.
    #[serde(default = "random_stripe_key", with = "exposed")]
    pub(crate) stripe_key: SecretString,
    /// Under which the stand-in Stripe signs its webhooks.
    #[serde(default = "random_webhook_secret", with = "exposed")]
    pub(crate) stripe_webhook: SecretString,
}

impl Folder {
    /// Opens the folder if it is there; an ephemeral run needs none.
    pub(crate) fn existing(args: &DevArgs) -> Result<Option<Self>> {
        (args.ephemeral || args.data_dir.is_dir()).then(|| Self::open(args)).transpose()
    }

    /// Opens the folder that the arguments name, for this run alone; it is made if it is not there.
    pub(crate) fn open(args: &DevArgs) -> Result<Self> {
        if args.ephemeral {
            let secrets = serde_json::from_str("{}").context("making secrets")?;
            return Ok(Self { root: None, secrets, _lock: None });
        }
        let root = std::path::absolute(&args.data_dir)
            .with_context(|| format!("--data-dir {}", args.data_dir.display()))?;
        fs::create_dir_all(&root).with_context(|| format!("making the data folder {}", root.display()))?;
        let lock = lock(&root)?;
        let secrets = Secrets::load_or_make(&root.join("secrets.json"))?;
        Ok(Self { root: Some(root), secrets, _lock: Some(lock) })
    }

    /// Where it is; `None`: nothing is kept.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The secrets.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Where the cluster goes.
    pub(crate) fn postgres(&self) -> Option<PathBuf> {
        self.root.as_ref().map(|root| root.join("postgres"))
    }

    /// Where the stand-in Stripe keeps its data.
    pub(crate) fn stripe_journal(&self) -> Option<PathBuf> {
        self.root.as_ref().map(|root| root.join("stripe.jsonl"))
    }
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another `nexus dev` uses the data folder {}: stop that one, or choose another with --data-dir, or use --ephemeral",
            root.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

impl Secrets {
    /// Reads the secrets; what is missing is made and written down before it is used.
    fn load_or_make(path: &Path) -> Result<Self> {
        let stored = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => "{}".to_owned(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let secrets: Self =
            serde_json::from_str(&stored).with_context(|| format!("reading {}", path.display()))?;
        let text = serde_json::to_string_pretty(&secrets)?;
        if text != stored {
            write_private(path, text.as_bytes())?;
        }
        Ok(secrets)
    }
}

/// Writes a file that only its owner may read; it is there whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().context("a file has a name")?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// 43 characters of 62: 256 bits of the system's randomness.
fn random() -> SecretString {
    rand::rng().sample_iter(Alphanumeric).take(43).map(char::from).collect::<String>().into()
}

fn random_stripe_key() -> SecretString {
    format!("sk_test_{}", random().expose_secret()).into()
}

fn random_webhook_secret() -> SecretString {
    format!("whsec_{}", random().expose_secret()).into()
}

/// A secret as it stands in the private file.
mod exposed {
    use super::*;

    pub(super) fn serialize<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose_secret())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SecretString, D::Error> {
        String::deserialize(from).map(SecretString::from)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_missing_ones_are_added() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("secrets.json");
        let made = Secrets::load_or_make(&path)?;
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        let read = Secrets::load_or_make(&path)?;
        assert_eq!(made.jwt.expose_secret(), read.jwt.expose_secret());
        assert_ne!(made.jwt.expose_secret(), made.service_token.expose_secret());

        write_private(&path, format!(r#"{{"jwt":"{}"}}"#, made.jwt.expose_secret()).as_bytes())?;
        let completed = Secrets::load_or_make(&path)?;
        assert_eq!(completed.jwt.expose_secret(), made.jwt.expose_secret());
        let again = Secrets::load_or_make(&path)?;
        assert_eq!(completed.cron.expose_secret(), again.cron.expose_secret());
        Ok(())
    }
}
