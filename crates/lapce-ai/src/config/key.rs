//! Where a provider's key is: in the configuration, a variable, a file, or what a command prints.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapce_ai_providers::SecretString;
use serde_json::Value;

use super::section::Section;
use super::{DAY, REDACTED, kinds};

/// The most keys of one provider.
const MOST: usize = 32;

/// Where a key is.
#[derive(Debug, Clone)]
pub enum ApiKey {
    /// Here.
    Value(SecretString),
    /// In this environment variable.
    Environment(String),
    /// In this file, which holds nothing else.
    File(PathBuf),
    /// In what this command prints.
    Command(KeyCommand),
}

/// A command that prints a key and nothing else.
#[derive(Debug, Clone)]
pub struct KeyCommand {
    /// What to run.
    pub run: KeyProgram,
    /// The command is run anew when its key is so old; `None`: only when the provider refuses the key.
    pub ttl: Option<Duration>,
    /// The most time that it may take.
    pub timeout: Duration,
}

/// What a [`KeyCommand`] runs. Its words may hold secrets, so `Debug` shows the program alone.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyProgram {
    /// A line for `/bin/sh -c`.
    Shell(String),
    /// A program, looked for in `PATH`, and its arguments.
    Program(String, Vec<String>),
}

impl KeyProgram {
    /// The program's name, for errors.
    pub fn name(&self) -> &str {
        match self {
            Self::Shell(_) => "/bin/sh",
            Self::Program(program, _) => program,
        }
    }
}

impl fmt::Debug for KeyProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As `lapce-ai config` shows it.
pub(super) fn show(run: &KeyProgram) -> Value {
    match run {
        KeyProgram::Shell(_) => Value::from(REDACTED),
        KeyProgram::Program(program, arguments) => {
            let arguments = arguments.iter().map(|_| Value::from(REDACTED));
            std::iter::once(Value::from(program.as_str()))
                .chain(arguments)
                .collect()
        }
    }
}

/// Reads the settings of `section` that say where its keys are: the one, or each of `api_keys`. `beside` makes a path
/// that is relative to the file whole.
pub(super) fn read(section: &mut Section<'_>, beside: impl Fn(PathBuf) -> PathBuf) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = read_one(section, &beside).into_iter().collect();
    let several = section.tables(
        "api_keys",
        "{ api_key_env = \"A_VARIABLE\" }",
        |one, place| {
            let key = read_one(one, &beside);
            if key.is_none() {
                one.problem(place, "it says nowhere where the key is");
            }
            key
        },
    );
    keys.extend(several);
    if keys.len() > MOST {
        let origin = section.origin("api_keys");
        section.problem(origin, format!("there are more than {MOST} keys"));
    }
    keys
}

fn read_one(section: &mut Section<'_>, beside: impl Fn(PathBuf) -> PathBuf) -> Option<ApiKey> {
    let value = section.secret("api_key");
    let variable = section.maybe(
        "api_key_env",
        &kinds::text("an environment variable's name"),
    );
    let file = section.maybe("api_key_file", &kinds::path());
    let command = section.maybe("api_key_command", &kinds::command());
    let ttl = section.maybe("api_key_ttl_secs", &kinds::seconds(1..=365 * DAY));
    let timeout = section.get(
        "api_key_timeout_secs",
        Duration::from_secs(30),
        &kinds::seconds(1..=3600),
    );
    let given = [
        ("api_key", value.is_some()),
        ("api_key_env", variable.is_some()),
        ("api_key_file", file.is_some()),
        ("api_key_command", command.is_some()),
    ];
    let mut set = given.iter().filter(|(_, set)| *set);
    if let (Some(_), Some((last, _))) = (set.next(), set.next_back()) {
        let origin = section.origin(last);
        section.problem(
            origin,
            "only one of api_key, api_key_env, api_key_file and api_key_command may be set",
        );
    }
    if ttl.is_some() && command.is_none() {
        let origin = section.origin("api_key_ttl_secs");
        section.problem(origin, "api_key_ttl_secs belongs to an api_key_command");
    }
    let command = command.map(|run| KeyCommand { run, ttl, timeout });
    value
        .map(ApiKey::Value)
        .or(variable.map(ApiKey::Environment))
        .or(file.map(|path| ApiKey::File(beside(path))))
        .or(command.map(ApiKey::Command))
}
