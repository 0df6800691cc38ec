//! `lapce-ai embed`.

use lapce_ai_proto::ai::{EmbeddingPurpose, EmbeddingsRequest};

use super::{or_interrupted, prompt};
use crate::cli::{EmbedArgs, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::Output;

pub(crate) fn run(config: &Config, global: &Global, args: &EmbedArgs) -> Result<(), Failure> {
    let input = match args.texts.as_slice() {
        [] => vec![prompt::read(&[])?],
        texts => texts.to_vec(),
    };
    let request = EmbeddingsRequest {
        model: args.model.clone().unwrap_or_default(),
        input,
        dimensions: args.dimensions,
        purpose: args.query.then_some(EmbeddingPurpose::Query),
    };
    super::run(or_interrupted(async {
        let client = launch::connect_or_start(config, global).await?;
        let answer = client.embeddings(&request).await?;
        client.close().await;
        let mut out = Output::stdout();
        if args.json {
            out.json(&answer)?;
        } else {
            for vector in &answer.embeddings {
                let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
                out.line(&format!("[{}]", numbers.join(",")))?;
            }
        }
        Ok(())
    }))
}
