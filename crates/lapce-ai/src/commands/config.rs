//! `lapce-ai config`.

use serde_json::json;

use crate::config::{Config, EXAMPLE};
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::providers::Providers;
use crate::serve::spend::prices;

/// Prints what is in effect.
pub(crate) fn show(config: &Config, json: bool) -> Result<(), Failure> {
    let mut out = Output::stdout();
    if json {
        out.json(&config.to_json())?;
    } else {
        out.text(&config.to_toml())?;
    }
    Ok(())
}

/// Says whether it can be used: settings that are wrong by themselves did not come so far, which leaves the providers'
/// keys and addresses, and the file of prices.
pub(crate) fn check(config: &Config, json: bool) -> Result<(), Failure> {
    let providers = Providers::configured(config, |name| std::env::var(name).ok());
    if !providers.problems().is_empty() {
        return Err(Failure::Usage(providers.problems().join("\n")));
    }
    prices(&config.spend)?;
    let mut out = Output::stdout();
    let file = config.file.as_ref().map(|file| file.display().to_string());
    if json {
        out.json(&json!({ "ok": true, "file": file }))?;
    } else {
        out.line(&match file {
            Some(file) => format!("{file}: ok"),
            None => "no configuration file; environment and flags: ok".to_owned(),
        })?;
    }
    Ok(())
}

/// Prints the commented example.
pub(crate) fn example() -> Result<(), Failure> {
    Ok(Output::stdout().text(EXAMPLE)?)
}
