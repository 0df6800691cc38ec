//! The files `~/.aws/credentials` and `~/.aws/config`.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use secrecy::{ExposeSecret, SecretString};

use super::{Keys, wrong};
use crate::error::ProviderError;

/// Both files, and which of their profiles is meant.
#[derive(Clone)]
pub(super) struct ProfileFiles {
    pub profile: String,
    pub credentials: Option<PathBuf>,
    pub config: Option<PathBuf>,
}

/// The settings of one profile from both files; those of the credentials file come first.
#[derive(Default)]
pub(super) struct Profile(HashMap<String, SecretString>);

/// What a profile says of where its keys are.
pub(super) enum Told {
    /// Here they are.
    Keys(Keys),
    /// This command prints them.
    Process(SecretString),
}

impl ProfileFiles {
    /// The profile, or `None` where neither file has it. A file that is not there has no profiles.
    pub(super) fn read(&self) -> Result<Option<Profile>, ProviderError> {
        let mut profile = None;
        for (path, prefix) in [(&self.config, "profile"), (&self.credentials, "")] {
            let Some(path) = path else { continue };
            let text = match fs::read_to_string(path) {
                Ok(text) => SecretString::from(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(wrong(format!("{} cannot be read: {error}", path.display())));
                }
            };
            let mut within = false;
            for line in text.expose_secret().lines() {
                if let Some(name) = section(line) {
                    within = self.is_meant(name, prefix);
                    if within {
                        profile.get_or_insert_with(Profile::default);
                    }
                } else if within && let Some(profile) = &mut profile {
                    profile.take(line);
                }
            }
        }
        Ok(profile)
    }

    /// `[profile x]` in the configuration, `[x]` in the credentials, `[default]` in both.
    fn is_meant(&self, section: &str, prefix: &str) -> bool {
        let name = match section.strip_prefix(prefix) {
            Some(name) if prefix.is_empty() || name.starts_with([' ', '\t']) => name,
            _ if section == "default" => section,
            _ => return false,
        };
        name.trim().trim_matches(['"', '\'']) == self.profile
    }

    /// The keys that stand in them now.
    pub(super) async fn fetch(&self) -> Result<Keys, ProviderError> {
        let files = self.clone();
        let read = tokio::task::spawn_blocking(move || files.read()).await;
        let read = read.map_err(|error| wrong(error.to_string()))?;
        let profile = read?.unwrap_or_default();
        match profile.told(self)? {
            Some(Told::Keys(keys)) => Ok(keys),
            Some(Told::Process(_)) | None => Err(wrong(format!("{self} has no keys any more"))),
        }
    }
}

/// For messages: which profile, and where.
impl fmt::Display for ProfileFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Option<PathBuf>| {
            let path = path.as_deref().unwrap_or(Path::new("no file"));
            path.display().to_string()
        };
        let (credentials, config) = (shown(&self.credentials), shown(&self.config));
        write!(
            f,
            "the AWS profile `{}` ({credentials}, {config})",
            self.profile
        )
    }
}

impl fmt::Debug for ProfileFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Profile {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?.expose_secret();
        Some(value).filter(|value| !value.is_empty())
    }

    /// Where its keys are; `None` if it says nothing of them.
    pub(super) fn told(&self, files: &ProfileFiles) -> Result<Option<Told>, ProviderError> {
        for (setting, what) in [
            ("role_arn", "assumes a role"),
            ("sso_session", "uses single sign-on"),
            ("sso_start_url", "uses single sign-on"),
            ("login_session", "uses a console login"),
        ] {
            if self.get(setting).is_some() {
                let name = &files.profile;
                return Err(wrong(format!(
                    "{files} {what} ({setting}), which is left to the AWS command line here: name another profile with \
                     `credential_process = aws configure export-credentials --profile {name} --format process`"
                )));
            }
        }
        let secret = |name: &str| self.get(name).map(SecretString::from);
        match (secret("aws_access_key_id"), secret("aws_secret_access_key")) {
            (Some(id), Some(secret_key)) => {
                let token = secret("aws_session_token").or_else(|| secret("aws_security_token"));
                Ok(Keys::new(id, secret_key, token, None).map(Told::Keys))
            }
            (None, None) => Ok(secret("credential_process").map(Told::Process)),
            _ => Err(wrong(format!(
                "{files} has only one of aws_access_key_id and aws_secret_access_key"
            ))),
        }
    }

    /// A line `name = value`. Lines that are indented belong to a setting with parts, of which none is wanted.
    fn take(&mut self, line: &str) {
        if line.starts_with([' ', '\t', '#', ';']) {
            return;
        }
        if let Some((name, value)) = line.split_once('=') {
            let name = name.trim().to_ascii_lowercase();
            self.0.insert(name, SecretString::from(value.trim()));
        }
    }
}

/// The name in `[name]`.
fn section(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix('[')?.split_once(']')?;
    Some(name.trim())
}
