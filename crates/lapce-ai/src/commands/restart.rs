//! `lapce-ai restart`.

use super::or_interrupted;
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::Output;

pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let client = launch::connect(config).await?;
        let before = client.status().await?.pid;
        let after = client.restart().await?;
        client.close().await;
        Ok(Output::stdout().line(&format!(
            "the daemon is process {after} now; process {before} finishes what it has begun"
        ))?)
    }))
}
