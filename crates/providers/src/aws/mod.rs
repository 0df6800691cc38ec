//! The keys of an AWS account, found where the AWS SDKs find them: in the environment, in the profile files, from a
//! command that a profile names, or from a container's agent.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>. Assuming roles and single
//! sign-on are left to `credential_process`, which the AWS command line serves.

mod container;
mod environment;
mod process;
mod profile;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::error::{ErrorKind, ProviderError};
use crate::http::HttpClient;
use crate::provider::BoxFuture;
use crate::wire::Credentials;
use container::Container;
pub use environment::AwsEnvironment;
use profile::ProfileFiles;

/// How long before they expire keys are fetched anew, as the SDKs do.
const EARLY: Duration = Duration::from_secs(10 * 60);
/// How often at most a profile file is read again, and a failed fetch repeated while the old keys still hold.
const AGAIN: Duration = Duration::from_secs(10);

/// The keys of an AWS account, with the way to get new ones before they expire. Clones share them.
#[derive(Clone)]
pub struct AwsCredentials(Arc<Shared>);

struct Shared {
    source: Source,
    state: Mutex<State>,
    /// Held by whoever fetches.
    flight: tokio::sync::Mutex<()>,
}

/// Where keys come from.
#[derive(Debug)]
enum Source {
    /// They were given and never change.
    Fixed,
    Files(ProfileFiles),
    /// A shell command that prints them. It may hold a password.
    Process(SecretString),
    Container(Container),
}

#[derive(Default)]
struct State {
    keys: Option<Arc<Keys>>,
    /// Until when nobody need ask for other keys; `None`: forever.
    fresh_until: Option<SystemTime>,
    /// How many fetches have ended.
    fetches: u64,
    /// Why the last one failed.
    failure: Option<ProviderError>,
}

/// What requests are signed with.
pub(crate) struct Keys {
    pub id: SecretString,
    pub secret: SecretString,
    /// Goes with temporary keys.
    pub token: Option<SecretString>,
    pub expires: Option<SystemTime>,
}

impl AwsCredentials {
    /// Keys that do not change. `token` is the session token of temporary ones.
    pub fn fixed(id: SecretString, secret: SecretString, token: Option<SecretString>) -> Self {
        let credentials = Self::new(Source::Fixed);
        credentials.state().keys = Some(Arc::new(Keys {
            id,
            secret,
            token,
            expires: None,
        }));
        credentials
    }

    fn new(source: Source) -> Self {
        Self(Arc::new(Shared {
            source,
            state: Mutex::default(),
            flight: tokio::sync::Mutex::default(),
        }))
    }

    /// The last keys; `None` while none were fetched.
    pub(crate) fn keys(&self) -> Option<Arc<Keys>> {
        self.state().keys.clone()
    }

    /// AWS says that the keys have expired: the next request fetches others.
    pub(crate) fn expired(&self) {
        if !matches!(self.0.source, Source::Fixed) {
            self.state().fresh_until = Some(SystemTime::UNIX_EPOCH);
        }
    }

    /// What must never appear in an error's text.
    pub(crate) fn secrets(&self) -> Vec<SecretString> {
        let Some(keys) = self.keys() else {
            return Vec::new();
        };
        let all = [&keys.id, &keys.secret].into_iter().chain(&keys.token);
        all.cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One fetch serves all who wait for it, be it with keys or with its error.
    async fn fetch(&self, client: &HttpClient, now: SystemTime) -> Result<(), ProviderError> {
        let seen = {
            let state = self.state();
            if state.is_fresh(now) {
                return Ok(());
            }
            state.fetches
        };
        let _flight = self.0.flight.lock().await;
        {
            let state = self.state();
            if state.fetches != seen {
                return state.outcome(now);
            }
        }
        let fetched = match &self.0.source {
            Source::Fixed => return Ok(()),
            Source::Files(files) => files.fetch().await,
            Source::Process(command) => process::fetch(command).await,
            Source::Container(container) => container.fetch(client).await,
        };
        let mut state = self.state();
        state.fetched(fetched, now, matches!(self.0.source, Source::Files(_)));
        state.outcome(now)
    }
}

impl Credentials for AwsCredentials {
    fn refresh<'a>(
        &'a self,
        client: &'a HttpClient,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.fetch(client, now))
    }
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsCredentials")
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl State {
    fn is_fresh(&self, now: SystemTime) -> bool {
        let hold = self.keys.as_ref().is_some_and(|keys| keys.hold(now));
        hold && self.fresh_until.is_none_or(|until| now < until)
    }

    /// `read_again`: others may stand there at any time.
    fn fetched(&mut self, fetched: Result<Keys, ProviderError>, now: SystemTime, read_again: bool) {
        self.fetches += 1;
        let soon = now + AGAIN;
        match fetched {
            Ok(keys) => {
                let early = keys.expires.map(|end| (end - EARLY).max(soon));
                self.fresh_until = if read_again { Some(soon) } else { early };
                self.keys = Some(Arc::new(keys));
            }
            Err(error) => {
                self.fresh_until = Some(soon);
                // Keys that are known to hold still do their work.
                self.keys
                    .take_if(|keys| keys.expires.is_none() || !keys.hold(now));
                self.failure = Some(error);
            }
        }
    }

    fn outcome(&self, now: SystemTime) -> Result<(), ProviderError> {
        let Some(keys) = &self.keys else {
            let none = || wrong("no AWS credentials were fetched yet");
            return Err(self.failure.clone().unwrap_or_else(none));
        };
        if !keys.hold(now) {
            return Err(ProviderError::new(
                ErrorKind::Authentication,
                "the AWS credentials have expired, and their source gives no newer ones",
            ));
        }
        Ok(())
    }
}

/// Keys as a container's agent and `credential_process` write them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    access_key_id: SecretString,
    secret_access_key: SecretString,
    #[serde(alias = "SessionToken")]
    token: Option<SecretString>,
    expiration: Option<String>,
}

/// The keys in `json`. `what` wrote it, for the error, which never repeats any of it.
fn read_keys(json: &[u8], what: &str) -> Result<Keys, ProviderError> {
    let malformed = |why: String| ProviderError::new(ErrorKind::MalformedResponse, why);
    let document: Document = serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        malformed(format!(
            "what {what} gave is no JSON with AccessKeyId and SecretAccessKey (line {line}, column {column})"
        ))
    })?;
    let expires =
        match document.expiration.as_deref() {
            None | Some("") => None,
            Some(date) => {
                let date = DateTime::from_str(date, Format::DateTimeWithOffset).ok();
                let date = date.and_then(|date| SystemTime::try_from(date).ok());
                Some(date.ok_or_else(|| {
                    malformed(format!("the Expiration that {what} gave is no date"))
                })?)
            }
        };
    Keys::new(
        document.access_key_id,
        document.secret_access_key,
        document.token,
        expires,
    )
    .ok_or_else(|| malformed(format!("{what} gave empty keys")))
}

impl Keys {
    /// `None`: they are empty. An empty token is none.
    fn new(
        id: SecretString,
        secret: SecretString,
        token: Option<SecretString>,
        expires: Option<SystemTime>,
    ) -> Option<Self> {
        let there = |text: &SecretString| !text.expose_secret().trim().is_empty();
        let keys = Self {
            token: token.filter(there),
            id,
            secret,
            expires,
        };
        (there(&keys.id) && there(&keys.secret)).then_some(keys)
    }

    /// Whether they have not expired, as far as their source told.
    fn hold(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

fn wrong(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::Configuration, message)
}
