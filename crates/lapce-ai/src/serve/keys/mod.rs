//! Keys, from where the configuration says they are. No text that leaves here has one in it.

mod by_command;
mod command;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lapce_ai_providers::{ErrorKind, Profile, ProviderError, SecretString};
use secrecy::zeroize::Zeroizing;

pub(super) use by_command::ByCommand;

/// The longest key, in bytes. Tokens of a few kilobytes exist.
const LONGEST: usize = 16 << 10;
/// What others may not do with a key's file: write for the group, anything for everybody.
const FORBIDDEN: u32 = 0o027;

/// A key in the environment, under the first of the names that `profile` knows and that is set.
pub(super) fn usual(
    profile: &Profile,
    lookup: impl Fn(&str) -> Option<String>,
) -> Option<SecretString> {
    profile.key_variables.iter().find_map(|name| {
        let text = Zeroizing::new(lookup(name)?);
        trimmed(&text)
    })
}

/// The key in the variable `name`.
///
/// # Errors
/// The variable is not set, or empty.
pub(super) fn in_variable(
    name: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<SecretString, ProviderError> {
    let text = lookup(name).map(Zeroizing::new).ok_or_else(|| {
        wrong(format!(
            "the environment variable {name} (api_key_env) is not set where the daemon runs"
        ))
    })?;
    trimmed(&text).ok_or_else(|| {
        wrong(format!(
            "the environment variable {name} (api_key_env) is empty"
        ))
    })
}

/// The key in the file `path`, which nobody else may read.
///
/// # Errors
/// The file cannot be read, is open to others, or holds no key.
pub(super) fn in_file(path: &Path) -> Result<SecretString, ProviderError> {
    read_file(path).map_err(|why| {
        wrong(format!(
            "the key file {} (api_key_file) {why}",
            path.display()
        ))
    })
}

fn read_file(path: &Path) -> Result<SecretString, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    let own = rustix::process::geteuid().as_raw();
    if about.uid() != own && about.uid() != 0 {
        return Err(format!(
            "belongs to user {}, who could change it: it must be yours or root's",
            about.uid()
        ));
    }
    if about.mode() & FORBIDDEN != 0 {
        return Err(format!(
            "has mode {:04o}, so that others can get at it: run `chmod 600 {}`",
            about.mode() & 0o7777,
            path.display()
        ));
    }
    // With room for all of it, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 64));
    let most = LONGEST as u64 + 1;
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    of_bytes(&bytes)
}

/// The key in what a file or a command holds.
fn of_bytes(bytes: &[u8]) -> Result<SecretString, String> {
    if bytes.len() > LONGEST {
        return Err(format!("holds more than {LONGEST} bytes: that is no key"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "holds no text".to_owned())?;
    trimmed(text).ok_or_else(|| "holds nothing".to_owned())
}

fn trimmed(text: &str) -> Option<SecretString> {
    Some(text.trim())
        .filter(|key| !key.is_empty())
        .map(SecretString::from)
}

fn wrong(message: String) -> ProviderError {
    ProviderError::new(ErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests;
