//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use lapce_ai_proto::ai::Reasoning;

use crate::config::{Config, Sources};
use crate::failure::Failure;
use crate::ledger::By;
use crate::{commands, output, serve};

const EXAMPLES: &str = "\
Examples:
  lapce-ai chat \"How do I reverse a list in Rust?\"
  git diff | lapce-ai chat \"Write a commit message for this\"
  lapce-ai chat --model openai/gpt-5.4 --json \"Hello\" | jq -r 'select(.type == \"text\").text'
  lapce-ai models
  lapce-ai providers
  lapce-ai config --example > ~/.config/lapce-ai/config.toml

The first `chat` starts the daemon, which stops by itself after five minutes without a client. Run `lapce-ai serve`
to keep one running. Provider keys come from the configuration or from variables such as OPENAI_API_KEY.

Exit codes:
  0    it worked
  1    the request failed
  2    wrong usage or configuration
  3    there is no daemon, or it did not start
  130  interrupted by Ctrl-C";

const CHAT_EXAMPLES: &str = "\
Examples:
  lapce-ai chat \"Explain lifetimes in one paragraph\"
  lapce-ai chat --system \"Answer in French\" \"Good morning\"
  lapce-ai chat --image screenshot.png \"What is wrong here?\"
  lapce-ai chat --schema person.json \"Make up a person\" | jq .
  lapce-ai chat < question.txt
  git diff | lapce-ai chat \"Review this change\"     # the prompt, then what is piped in
  lapce-ai chat -                                   # type the prompt, end it with Ctrl-D

Ctrl-C cancels the request, at the provider too, and leaves the daemon running.
Of the model's thinking only a terminal shows anything; --json has it all. A program that starts `chat` with a pipe
as standard input has to close it, or give it /dev/null.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  lapce-ai config                       # what is in effect, and where each value comes from
  lapce-ai config --check               # exit code 2, with line and reason, if something is wrong
  lapce-ai config --example > ~/.config/lapce-ai/config.toml
  LAPCE_AI_IPC__MAX_CONNECTIONS=50 lapce-ai config
  lapce-ai --set ipc.max_connections=50 serve

The file is --config, else $LAPCE_AI_CONFIG, else $XDG_CONFIG_HOME/lapce-ai/config.toml, else
~/.config/lapce-ai/config.toml. Variables named LAPCE_AI_<SECTION>__<KEY> override it, flags override both.";

/// One daemon between your editors and their AI providers.
#[derive(Debug, Parser)]
#[command(name = "lapce-ai", version, after_help = EXAMPLES, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The configuration file
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Override a setting, such as `ipc.max_connections=50`
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Do not start a daemon if none is running
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a model, and print the answer as it comes
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Turn texts into vectors
    Embed(EmbedArgs),
    /// Count a prompt's tokens: as the provider does, or about, where it does not
    Count(CountArgs),
    /// Run the daemon in the foreground, until SIGTERM or Ctrl-C
    Serve(ServeArgs),
    /// Stop the daemon; running requests get `ipc.drain_timeout_secs` to end. Exit code 0 if none was running, too
    Stop,
    /// Replace the daemon by a new one of the same file, which reads its configuration anew. No request fails: the old one
    /// finishes what it has begun, and goes on alone if the new one cannot take over
    Restart,
    /// Show the daemon's connections, providers and counters
    Status {
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what `status` tells in numbers as Prometheus reads it, for `node_exporter`'s textfile collector or a script
    Metrics,
    /// List the models that can be asked, as `chat --model` takes them
    Models {
        /// Only this provider's
        #[arg(long, value_name = "NAME")]
        provider: Option<String>,
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the providers that are known by name, with what each can do; no daemon is needed
    Providers {
        /// Only this one
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Instead, how the running daemon's do now: requests, times to the first token, circuit breakers, keys, spending
        #[arg(long, conflicts_with = "name")]
        live: bool,
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
        /// The page docs/providers.md
        #[arg(long, conflicts_with_all = ["json", "live", "name"])]
        markdown: bool,
    },
    /// Show what was spent, as the ledger has it, whether a daemon runs or not
    Spend {
        /// Of so many days, today included (in UTC)
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// By what to sum up
        #[arg(long, value_enum, default_value_t = By::Provider)]
        by: By,
        /// For programs: one JSON object; money in billionths of a US dollar
        #[arg(long)]
        json: bool,
    },
    /// Show or check the configuration
    #[command(after_help = CONFIG_EXAMPLES)]
    Config {
        /// Only say whether it can be used
        #[arg(long)]
        check: bool,
        /// Print a commented file with every setting and its default
        #[arg(long, conflicts_with_all = ["check", "json"])]
        example: bool,
        /// For programs: one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions, such as: lapce-ai completions bash > ~/.local/share/bash-completion/completions/lapce-ai
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// What `chat` asks.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The prompt; what is piped in is added to it, and `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Vec<String>,
    /// provider/model, a model, an alias or a provider; the daemon's default if absent
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// Instructions before the conversation
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A picture to look at: a PNG, JPEG, GIF or WebP file, or an https address that the provider fetches. May be repeated
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) image: Vec<String>,
    /// How hard to think: none, minimal, low, medium, high, xhigh, or a number of tokens
    #[arg(long, value_name = "EFFORT", value_parser = reasoning)]
    pub(crate) reasoning: Option<Reasoning>,
    /// A file with a JSON Schema that the answer must fit
    #[arg(long, value_name = "FILE")]
    pub(crate) schema: Option<PathBuf>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// Randomness, usually from 0 to 2
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Wait for the whole answer
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// For programs: one event a line, or with --no-stream the whole answer as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) deadline: Option<Duration>,
}

/// What `embed` turns into vectors.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The texts, each for a vector of its own; without any, standard input is one
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// provider/model, a model, an alias or a provider; the daemon's default if absent
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// Length of each vector, where the model lets one choose
    #[arg(long, value_name = "N")]
    pub(crate) dimensions: Option<u32>,
    /// The texts are questions, not the documents that are searched with them
    #[arg(long)]
    pub(crate) query: bool,
    /// For programs: the whole answer as one JSON object, rather than a JSON list a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `count` counts.
#[derive(Debug, Args)]
pub(crate) struct CountArgs {
    /// The prompt; what is piped in is added to it, and `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Vec<String>,
    /// provider/model, a model, an alias or a provider; the daemon's default if absent
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// Instructions before the conversation
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// For programs: one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How `serve` runs.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Stop when nobody has been connected for so many seconds
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) exit_when_idle: Option<Duration>,
    /// Leave quietly if a daemon is running already
    #[arg(long, hide = true)]
    pub(crate) if_needed: bool,
    /// Follow the daemon at the other end of standard input
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
}

impl Global {
    /// Where the configuration comes from, with these flags on top.
    fn sources(&self) -> Result<Sources, Failure> {
        let mut flags = Vec::new();
        for set in &self.set {
            let (path, value) = set
                .split_once('=')
                .filter(|(path, _)| path.contains('.'))
                .ok_or_else(|| {
                    Failure::Usage(format!("--set {set}: it must be SECTION.KEY=VALUE"))
                })?;
            flags.push((
                path.trim().to_owned(),
                value.to_owned(),
                format!("--set {path}"),
            ));
        }
        if let Some(socket) = &self.socket {
            let value = socket.to_string_lossy().into_owned();
            flags.push(("ipc.socket_path".to_owned(), value, "--socket".to_owned()));
        }
        Ok(Sources {
            file: self.config.clone(),
            flags,
            ..Sources::from_process()
        })
    }
}

/// Runs the program and says how it ended.
pub fn run() -> ExitCode {
    run_with(std::env::args_os())
}

/// The same with these arguments, of which the first is the program's name.
pub fn run_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(arguments);
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                output::note(&format!("lapce-ai: {failure}"));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    // These need no configuration, and help to write one.
    match &cli.command {
        Command::Completions { shell } => return commands::completions::<Cli>(*shell),
        Command::Config { example: true, .. } => return commands::config::example(),
        Command::Providers { markdown: true, .. } => return commands::providers::markdown(),
        _ => {}
    }
    let load = || Ok(Config::load(&cli.global.sources()?)?);
    if let Command::Serve(args) = &cli.command {
        return serve::run(load, args);
    }
    let config = load()?;
    match &cli.command {
        Command::Chat(args) => commands::chat::run(&config, &cli.global, args),
        Command::Embed(args) => commands::embed::run(&config, &cli.global, args),
        Command::Count(args) => commands::count::run(&config, &cli.global, args),
        Command::Stop => commands::stop::run(&config),
        Command::Restart => commands::restart::run(&config),
        Command::Status { json } => commands::status::run(&config, *json),
        Command::Metrics => commands::metrics::run(&config),
        Command::Models { provider, json } => {
            commands::models::run(&config, &cli.global, provider.as_deref(), *json)
        }
        Command::Providers {
            live: true, json, ..
        } => commands::live::run(&config, *json),
        Command::Providers { name, json, .. } => {
            commands::providers::run(&config, name.as_deref(), *json)
        }
        Command::Spend { days, by, json } => commands::spend::run(&config, *days, *by, *json),
        Command::Config {
            check: true, json, ..
        } => commands::config::check(&config, *json),
        Command::Config { json, .. } => commands::config::show(&config, *json),
        Command::Serve(_) | Command::Completions { .. } => Ok(()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (0.001..=1e9).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "it must be a number of seconds, such as 30 or 0.5".to_owned())
}

fn reasoning(text: &str) -> Result<Reasoning, String> {
    if let Ok(tokens) = text.parse() {
        return Ok(Reasoning {
            budget_tokens: Some(tokens),
            ..Reasoning::default()
        });
    }
    // The protocol's own words.
    match serde_json::from_value(text.into()) {
        Ok(effort) => Ok(Reasoning {
            effort: Some(effort),
            ..Reasoning::default()
        }),
        Err(_) => Err(
            "it must be none, minimal, low, medium, high, xhigh, or a number of tokens".to_owned(),
        ),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    let value = text
        .parse()
        .ok()
        .filter(|value| (0.0..=10.0).contains(value));
    value.ok_or_else(|| "it must be a number from 0 to 10, and most providers stop at 2".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use lapce_ai_proto::ai::Effort;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_exit_codes_stand_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for code in ["  1    ", "  2    ", "  3    ", "  130  "] {
            assert!(help.contains(code), "{help}");
        }
    }

    #[test]
    fn flags_become_settings() {
        let cli = Cli::parse_from([
            "lapce-ai",
            "status",
            "--socket",
            "/tmp/x.sock",
            "--set",
            "ipc.max_streams=3",
        ]);
        let sources = cli.global.sources().unwrap();
        let flags: Vec<_> = sources
            .flags
            .iter()
            .map(|(path, value, _)| (path.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            flags,
            [("ipc.max_streams", "3"), ("ipc.socket_path", "/tmp/x.sock")]
        );
        let wrong = Cli::parse_from(["lapce-ai", "--set", "max_streams", "status"]);
        assert_eq!(wrong.global.sources().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn thinking_is_a_word_or_a_number() {
        assert_eq!(reasoning("2048").unwrap().budget_tokens, Some(2048));
        assert_eq!(reasoning("xhigh").unwrap().effort, Some(Effort::ExtraHigh));
        for wrong in ["", "much", "-1"] {
            assert!(reasoning(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "0", "nan", "inf", "1e300", "ten"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
