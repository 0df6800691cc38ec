//! `lapce-ai count`.

use lapce_ai_proto::ai::{AIRequest, Message};

use super::{or_interrupted, prompt};
use crate::cli::{CountArgs, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::Output;

pub(crate) fn run(config: &Config, global: &Global, args: &CountArgs) -> Result<(), Failure> {
    let message = Message::user(prompt::read(&args.prompt)?);
    let request = AIRequest {
        system_prompt: args.system.clone(),
        ..AIRequest::new(args.model.clone().unwrap_or_default(), vec![message])
    };
    super::run(or_interrupted(async {
        let client = launch::connect_or_start(config, global).await?;
        let count = client.token_count(&request).await?;
        client.close().await;
        let mut out = Output::stdout();
        if args.json {
            out.json(&count)?;
        } else if count.exact {
            out.line(&count.tokens.to_string())?;
        } else {
            out.line(&format!("about {}", count.tokens))?;
        }
        Ok(())
    }))
}
