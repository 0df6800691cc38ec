//! What the environment says of the AWS account.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::container::{Container, Token};
use super::profile::{ProfileFiles, Told};
use super::{AwsCredentials, Source, wrong};
use crate::error::ProviderError;

/// The settings that the AWS SDKs have in common: environment variables and profile files.
#[derive(Debug)]
pub struct AwsEnvironment<L> {
    lookup: L,
    files: ProfileFiles,
    /// The profile was named in our own settings, so that the variables' keys are not meant.
    chosen: bool,
    /// The profile was named at all, so that it must be there.
    named: bool,
}

impl<L: Fn(&str) -> Option<String>> AwsEnvironment<L> {
    /// `lookup` reads the environment, usually `|name| std::env::var(name).ok()`. `profile` is the name of a profile;
    /// without one `AWS_PROFILE` counts, then `default`. Nothing is read yet.
    pub fn new(profile: Option<&str>, lookup: L) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let home = set("HOME").map(PathBuf::from);
        let file = |variable: &str, usual: &str| {
            let given = set(variable).map(PathBuf::from);
            // The SDKs know `~` in these.
            match (given, &home) {
                (Some(path), Some(home)) => Some(match path.strip_prefix("~") {
                    Ok(rest) => home.join(rest),
                    Err(_) => path,
                }),
                (Some(path), None) => Some(path),
                (None, home) => home
                    .as_deref()
                    .map(|home: &Path| home.join(".aws").join(usual)),
            }
        };
        let named = profile
            .map(ToOwned::to_owned)
            .or_else(|| set("AWS_PROFILE"));
        Self {
            files: ProfileFiles {
                credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
                config: file("AWS_CONFIG_FILE", "config"),
                profile: named.clone().unwrap_or_else(|| "default".into()),
            },
            chosen: profile.is_some(),
            named: named.is_some(),
            lookup,
        }
    }

    /// The region: `AWS_REGION`, `AWS_DEFAULT_REGION`, or the profile's.
    pub fn region(&self) -> Option<String> {
        let variables = ["AWS_REGION", "AWS_DEFAULT_REGION"];
        variables
            .into_iter()
            .find_map(|name| self.set(name))
            .or_else(|| {
                let profile = self.files.read().ok()??;
                profile.get("region").map(ToOwned::to_owned)
            })
    }

    /// The account's keys, or the way to them: from the variables, the profile, or the container, in this order.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) where there are none, or where they cannot be used; it says
    /// where they were looked for.
    pub fn credentials(&self) -> Result<AwsCredentials, ProviderError> {
        if !self.chosen
            && let Some(credentials) = self.variables()?
        {
            return Ok(credentials);
        }
        let profile = self.files.read()?;
        if self.named && profile.is_none() {
            return Err(wrong(format!("{} is not there", self.files)));
        }
        match profile.unwrap_or_default().told(&self.files)? {
            Some(Told::Keys(_)) => {
                return Ok(AwsCredentials::new(Source::Files(self.files.clone())));
            }
            Some(Told::Process(command)) => {
                return Ok(AwsCredentials::new(Source::Process(command)));
            }
            None => {}
        }
        if let Some(container) = self.container()? {
            return Ok(AwsCredentials::new(Source::Container(container)));
        }
        Err(wrong(format!(
            "no AWS credentials: set AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or put \
             keys or a credential_process into {}",
            self.files
        )))
    }

    fn variables(&self) -> Result<Option<AwsCredentials>, ProviderError> {
        let secret = |name: &str| self.set(name).map(SecretString::from);
        match (secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(key)) => {
                let token = secret("AWS_SESSION_TOKEN");
                Ok(Some(AwsCredentials::fixed(id, key, token)))
            }
            (None, None) => Ok(None),
            _ => Err(wrong(
                "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
            )),
        }
    }

    fn container(&self) -> Result<Option<Container>, ProviderError> {
        let file = self.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        let token = match (file, self.set("AWS_CONTAINER_AUTHORIZATION_TOKEN")) {
            (Some(path), _) => Token::File(path.into()),
            (None, Some(token)) => Token::Value(token.into()),
            (None, None) => Token::None,
        };
        if let Some(path) = self.set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
            return Container::relative(&path, token).map(Some);
        }
        let url = self.set("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        url.map(|url| Container::full(&url, token)).transpose()
    }

    fn set(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?.trim().to_owned();
        Some(value).filter(|value| !value.is_empty())
    }
}
