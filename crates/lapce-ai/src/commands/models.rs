//! `lapce-ai models`.

use lapce_ai_proto::ai::{ModelAlias, ModelList};

use super::or_interrupted;
use crate::cli::Global;
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, note, table};

pub(crate) fn run(
    config: &Config,
    global: &Global,
    provider: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let client = launch::connect_or_start(config, global).await?;
        let list = client.models(provider).await?;
        client.close().await;
        let mut out = Output::stdout();
        if json {
            out.json(&list)?;
        } else {
            for line in lines(&list) {
                out.line(&line)?;
            }
            for error in &list.errors {
                note(&format!("lapce-ai: {}: {}", error.provider, error.message));
            }
        }
        if list.models.is_empty() && !list.errors.is_empty() {
            return Err(Failure::Failed(
                "no provider could list its models".to_owned(),
            ));
        }
        Ok(())
    }))
}

fn lines(list: &ModelList) -> Vec<String> {
    let row = |model: &lapce_ai_proto::ai::Model| {
        let window = model
            .context_window
            .map(|tokens| format!("{tokens} tokens"))
            .unwrap_or_default();
        vec![format!("{}/{}", model.provider, model.id), window]
    };
    let alias = |alias: &ModelAlias| vec![alias.name.clone(), format!("means {}", alias.model)];
    let aliases = list.aliases.iter().map(alias);
    table(
        &list
            .models
            .iter()
            .map(row)
            .chain(aliases)
            .collect::<Vec<_>>(),
    )
}
