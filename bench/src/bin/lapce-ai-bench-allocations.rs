//! What `lapce-ai-bench-stream` starts to count heap allocations. It is a program of its own because its allocator counts
//! always, and that would slow down those who allocate.
#![forbid(unsafe_code)]

#[path = "lapce-ai-bench-stream"]
mod stream {
    pub(crate) mod formats;
    pub(crate) mod ordinary;
    pub(crate) mod reading;
}

use std::io::{self, Write};
use std::process::ExitCode;

use allocation_counter::measure;
use anyhow::{Context, Result};

use stream::formats::Format;
use stream::reading::Way;

/// Long enough that what a stream costs once is nothing beside its tokens.
const TOKENS: usize = 20_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "lapce-ai-bench-allocations: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints `{"<profile>": {"<way>": allocations per token}}`.
fn run() -> Result<()> {
    let mut counts = serde_json::Map::new();
    for format in Format::all().0 {
        let stream = format.stream(TOKENS);
        let mut of_format = serde_json::Map::new();
        for way in Way::of(format) {
            let mut outcome = Ok(());
            let counted = measure(|| outcome = way.read(format, &stream));
            outcome.with_context(|| format!("{}, {}", format.profile, way.name()))?;
            let name = serde_json::to_value(way)?;
            let name = name.as_str().context("a way has a name")?.to_owned();
            let per_token = counted.count_total as f64 / TOKENS as f64;
            of_format.insert(name, per_token.into());
        }
        counts.insert(format.profile.into(), of_format.into());
    }
    writeln!(io::stdout(), "{}", serde_json::Value::from(counts))?;
    Ok(())
}
