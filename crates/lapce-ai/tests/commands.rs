//! The program as people use it: real processes, each test in a home of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../providers/tests/support/sdk.rs"]
mod sdk;
mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use lapce_ai_client::{BlockingClient, MessageType, Options};
use rustix::process::Signal;
use serde_json::Value;
use support::{Home, Log, OpenAi, ended, exists, first_bytes, signal, until, wait};

/// An answer that takes until it is cancelled.
const ENDLESS: &str = "[providers.local]\ntokens = 1_000_000\ntokens_per_second = 50\n";

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_first_chat_starts_a_daemon_and_stop_leaves_nothing() {
    let home = Home::new("");
    let answer = home.ok(&["chat", "Hello", "there"]);
    assert!(answer.contains("You said: \"Hello there\""), "{answer}");
    assert!(
        answer.ends_with('\n') && !answer.contains('\x1b'),
        "{answer:?}"
    );
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    assert_eq!(home.daemons().len(), 1);

    let pid = home.pid();
    home.ok(&["chat", "again"]);
    assert_eq!(
        home.pid(),
        pid,
        "the second chat found the first one's daemon"
    );

    assert_eq!(
        home.ok(&["stop"]),
        format!("stopped the daemon (process {pid})\n")
    );
    assert!(home.names_in_runtime_dir().is_empty());
    until("the daemon has gone", || home.daemons().is_empty());
}

#[test]
fn status_is_for_people_and_for_programs_and_starts_nothing() {
    let home = Home::new("");
    let nobody = home.run(&["status"]);
    assert_eq!((nobody.code, nobody.out.as_str()), (Some(3), ""));
    assert!(nobody.err.contains("lapce-ai serve"), "{}", nobody.err);
    assert!(home.daemons().is_empty());

    home.ok(&["chat", "x"]);
    let status = home.status();
    assert_eq!(status["providers"][0]["name"], "local");
    assert_eq!(status["defaultModel"], "local/local");
    assert_eq!(status["stopsWhenIdleSecs"], 300);
    assert_eq!(status["socket"], home.socket().to_str().unwrap());
    let own = &status["connections"].as_array().unwrap()[0];
    assert_eq!(
        (own["transport"].as_str(), own["uid"].as_u64()),
        (
            Some("shared memory"),
            status["connections"][0]["uid"].as_u64()
        )
    );
    let pool = &status["pool"];
    assert_eq!(pool["budget"], 64 << 20);
    let sizes: Vec<_> = (0..4)
        .map(|at| pool["tiers"][at]["size"].as_u64())
        .collect();
    assert_eq!(sizes, [Some(4 << 10), Some(64 << 10), Some(1 << 20), None]);
    let caps: Vec<_> = (0..4).map(|at| pool["tiers"][at]["cap"].as_u64()).collect();
    assert_eq!(caps, [Some(100), Some(50), Some(10), Some(0)]);
    let text = home.ok(&["status"]);
    for part in [
        "default model",
        "local/local",
        "built in",
        "shared memory",
        "of 64 MiB held",
        "BUFFERS",
        "larger",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn models_can_be_put_into_chat() {
    let home = Home::new("");
    assert_eq!(home.ok(&["models"]), "local/local\n");
    let list: Value = serde_json::from_str(&home.ok(&["models", "--json"])).unwrap();
    assert_eq!(list["models"][0]["id"], "local");
    home.ok(&["chat", "--model", "local/local", "x"]);
    let unknown = home.run(&["models", "--provider", "nobody"]);
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.err.contains("no provider is called `nobody`"),
        "{}",
        unknown.err
    );
    let wrong = home.run(&["chat", "--model", "nobody/x", "x"]);
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.err.contains("`nobody/x`") && wrong.err.contains("model_not_found"),
        "{}",
        wrong.err
    );
}

#[test]
fn the_prompt_may_be_piped_in() {
    let home = Home::new("");
    for (args, input, said) in [
        (&["chat"][..], "from a pipe\n", "from a pipe"),
        (&["chat", "-"], "by dash", "by dash"),
        (&["chat", "Review:"], "a change", "Review:"),
    ] {
        let ended = home.run_with_input(args, input);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.out.contains(said), "{ended:?}");
    }
    let both = home.run_with_input(&["chat", "Review:"], "a change");
    assert!(both.out.contains("a change"), "{both:?}");
    let nothing = home.run_with_input(&["chat"], " \n");
    assert_eq!(nothing.code, Some(2));
    assert!(
        nothing.err.contains("there is no prompt"),
        "{}",
        nothing.err
    );
}

#[test]
fn programs_get_one_event_a_line_or_one_object() {
    let home = Home::new("");
    let events = json_lines(&home.ok(&["chat", "--json", "x"]));
    assert_eq!(events[0]["type"], "start");
    assert_eq!(events.last().unwrap()["type"], "finish");
    let text: String = events
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    assert_eq!(format!("{text}\n"), home.ok(&["chat", "x"]));
    assert_eq!(format!("{text}\n"), home.ok(&["chat", "--no-stream", "x"]));
    let whole = json_lines(&home.ok(&["chat", "--no-stream", "--json", "x"]));
    assert_eq!(whole.len(), 1);
    assert_eq!(
        (whole[0]["content"].as_str(), whole[0]["provider"].as_str()),
        (Some(text.as_str()), Some("local"))
    );
    let cut = home.run(&["chat", "--max-tokens", "3", "x"]);
    assert_eq!(cut.code, Some(0));
    assert!(cut.err.contains("--max-tokens"), "{}", cut.err);
}

#[test]
fn ctrl_c_cancels_the_request_and_leaves_the_daemon() {
    let home = Home::new(ENDLESS);
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    first_bytes(&mut chat);
    let pid = home.pid();
    signal(i32::try_from(chat.id()).unwrap(), Signal::INT);
    let ended = ended(chat);
    assert_eq!((ended.code, ended.err.as_str()), (Some(130), ""));
    until("the daemon has counted it", || {
        home.status()["counters"]["cancelled"] == 1
    });
    assert_eq!(home.pid(), pid);
}

#[test]
fn ctrl_c_ends_even_a_chat_that_nobody_reads() {
    let home = Home::new("[providers.local]\ntokens = 100_000_000\n");
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    let output = chat.stdout.take().unwrap();
    until("the pipe is full", || {
        rustix::io::ioctl_fionread(&output).unwrap() > 60_000
    });
    signal(i32::try_from(chat.id()).unwrap(), Signal::INT);
    assert_eq!(wait(&mut chat).code(), Some(130));
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let home = Home::new(ENDLESS);
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    first_bytes(&mut chat);
    drop(chat.stdout.take());
    let ended = ended(chat);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    until("the daemon has counted it", || {
        home.status()["counters"]["cancelled"] == 1
    });
}

#[test]
fn after_a_killed_daemon_the_next_chat_starts_another() {
    let home = Home::new("");
    home.ok(&["chat", "x"]);
    let first = home.pid();
    signal(first, Signal::KILL);
    until("it is dead", || home.daemons().is_empty());
    assert_eq!(
        home.names_in_runtime_dir(),
        ["daemon.lock", "daemon.sock"],
        "they survive a crash"
    );
    assert_eq!(home.run(&["status"]).code, Some(3));
    home.ok(&["chat", "x"]);
    assert_ne!(home.pid(), first);
}

#[test]
fn a_chat_says_so_when_its_daemon_dies() {
    let home = Home::new(ENDLESS);
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    first_bytes(&mut chat);
    signal(home.pid(), Signal::KILL);
    let ended = ended(chat);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains("the connection was lost"),
        "{}",
        ended.err
    );
}

#[test]
fn two_chats_at_once_share_one_daemon() {
    let home = Home::new("");
    let chats: Vec<_> = (0..4)
        .map(|_| home.command(&["chat", "x"]).spawn().unwrap())
        .collect();
    for chat in chats {
        let ended = ended(chat);
        assert_eq!(ended.code, Some(0), "{ended:?}\n{}", home.log());
    }
    until("only one is left", || home.daemons().len() == 1);
}

#[test]
fn nothing_is_started_where_that_is_not_wanted() {
    let home = Home::new("");
    for args in [&["chat", "--no-start", "x"][..], &["models", "--no-start"]] {
        assert_eq!(home.run(args).code, Some(3));
    }
    let stop = home.run(&["stop"]);
    assert_eq!((stop.code, stop.out.as_str()), (Some(0), ""));
    assert!(stop.err.contains("nothing to stop"), "{}", stop.err);
    assert!(home.daemons().is_empty());
}

#[test]
fn a_second_daemon_is_told_of_the_first() {
    let home = Home::new("");
    let first = home.serve(&[]);
    let second = home.run(&["serve"]);
    assert_eq!(second.code, Some(1));
    assert!(
        second.err.contains("a daemon is running already"),
        "{}",
        second.err
    );
    assert!(
        second.err.contains("daemon.lock") && second.err.contains("lapce-ai stop"),
        "{}",
        second.err
    );
    assert_eq!(home.pid(), first.pid());
}

#[test]
fn a_stale_socket_is_no_hindrance() {
    let home = Home::new("");
    drop(UnixListener::bind(home.socket()).unwrap());
    assert!(exists(&home.socket()));
    home.ok(&["chat", "x"]);
}

#[test]
fn a_daemon_that_cannot_start_says_why_to_the_one_who_waits() {
    let home = Home::new("");
    fs::set_permissions(home.path("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let chat = home.run(&["chat", "x"]);
    assert_eq!(chat.code, Some(3), "{chat:?}");
    for part in [
        "the daemon did not start",
        "mode 0755",
        "chmod 700",
        "daemon.log",
    ] {
        assert!(chat.err.contains(part), "{part}: {}", chat.err);
    }
    let serve = home.run(&["serve"]);
    assert_eq!(serve.code, Some(1));
    assert!(serve.err.contains("chmod 700"), "{}", serve.err);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let home = Home::new("");
    let _daemon = home.serve(&[]);
    home.ok(&["chat", "hello"]);
    let mut text = String::new();
    // The chat's connection has gone, and there is the one that asks.
    until("one is connected", || {
        text = home.ok(&["metrics"]);
        text.contains("lapce_ai_connections{transport=\"shared memory\"} 1\n")
    });
    for line in [
        "lapce_ai_reconnections_total 0",
        "lapce_ai_provider_answered_total{provider=\"local\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let Some(python) = sdk::python() else {
        return;
    };
    // Prometheus's own client reads it, every line.
    let script = "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as families\n\
                  print(sum(len(family.samples) for family in families(sys.stdin.read())))";
    let mut reader = Command::new(python);
    reader.args(["-c", script]).stdin(Stdio::piped());
    reader.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reader = reader.spawn().unwrap();
    let mut to = reader.stdin.take().unwrap();
    to.write_all(text.as_bytes()).unwrap();
    drop(to);
    let read = ended(reader);
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(read.out.trim(), samples.to_string(), "{}", read.err);
}

#[test]
fn a_wrong_configuration_is_told_with_its_line() {
    let home = Home::new("[ipc]\nmax_conections = 5\n");
    for args in [
        &["chat", "x"][..],
        &["serve"],
        &["config"],
        &["config", "--check"],
        &["status"],
    ] {
        let ended = home.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(
            ended
                .err
                .contains("config.toml:5:1: unknown key `ipc.max_conections`"),
            "{}",
            ended.err
        );
        assert!(
            ended.err.contains("did you mean `max_connections`?"),
            "{}",
            ended.err
        );
    }
    home.configure("[providers.groq]\napi_key_file = 'no.key'\n");
    let check = home.run(&["config", "--check"]);
    assert_eq!(check.code, Some(2));
    assert!(
        check.err.contains("no.key (api_key_file) cannot be read"),
        "{}",
        check.err
    );
    let variable = home
        .command(&["config"])
        .env("LAPCE_AI_IPC__MAX_STREAMS", "0")
        .spawn()
        .unwrap();
    let ended = ended(variable);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.err.contains("LAPCE_AI_IPC__MAX_STREAMS"),
        "{}",
        ended.err
    );
    assert_eq!(home.run(&["chat", "--deadline", "soon", "x"]).code, Some(2));
    assert_eq!(home.run(&["no-such-command"]).code, Some(2));
}

#[test]
fn the_configuration_can_be_looked_at() {
    let home = Home::new("[ipc]\nmax_streams = 9\n[providers.groq]\napi_key = 'gsk-very-secret'\n");
    let text = home.ok(&["config", "--set", "ipc.max_connections=7"]);
    for part in [
        "max_streams = 9",
        "# file, line 5",
        "max_connections = 7",
        "# flag: --set ipc.max_connections",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(
        !text.contains("secret") && text.contains("[redacted]"),
        "{text}"
    );
    assert!(home.ok(&["config", "--check"]).contains("config.toml: ok"));
    let json: Value = serde_json::from_str(&home.ok(&["config", "--json"])).unwrap();
    assert_eq!(json["sections"]["ipc"]["max_streams"]["value"], 9);
    let example = home.ok(&["config", "--example"]);
    fs::write(home.path("config/lapce-ai/config.toml"), example).unwrap();
    home.ok(&["config", "--check"]);
    assert!(home.ok(&["completions", "bash"]).contains("lapce-ai"));
}

#[test]
fn a_signal_drains_and_leaves_nothing() {
    let home = Home::new("[providers.local]\ntokens = 20\ntokens_per_second = 40\n");
    let mut daemon = home.serve(&[]);
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    first_bytes(&mut chat);
    signal(daemon.pid(), Signal::TERM);
    let ended = ended(chat);
    assert_eq!(ended.code, Some(0), "the answer came to its end: {ended:?}");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(home.names_in_runtime_dir().is_empty());
}

#[test]
fn a_second_signal_waits_for_nobody() {
    let home = Home::new(&format!("{ENDLESS}[ipc]\ndrain_timeout_secs = 600\n"));
    let mut daemon = home.serve(&[]);
    let mut chat = home.command(&["chat", "x"]).spawn().unwrap();
    first_bytes(&mut chat);
    signal(daemon.pid(), Signal::INT);
    daemon.log.wait_for("stopping");
    signal(daemon.pid(), Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0));
    let ended = ended(chat);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(home.names_in_runtime_dir().is_empty());
}

#[test]
fn a_daemon_without_clients_leaves_by_itself() {
    let home = Home::new("");
    let mut child = home
        .command(&["serve", "--exit-when-idle", "0.05"])
        .spawn()
        .unwrap();
    let log = Log::of(&mut child);
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(home.names_in_runtime_dir().is_empty());
    drop(log);
}

#[test]
fn errors_say_what_to_do() {
    let home = Home::new("[providers.local]\nfail = 'rate_limited'\nfail_after_tokens = 2\n");
    let limited = home.run(&["chat", "x"]);
    assert_eq!(limited.code, Some(1));
    assert!(limited.err.contains("rate_limited"), "{}", limited.err);
    assert!(!limited.out.is_empty(), "what came before is kept");
    home.ok(&["stop"]);
    home.configure("[providers.local]\nfail = 'hang'\n");
    let late = home.run(&["chat", "--deadline", "0.2", "x"]);
    assert_eq!(late.code, Some(1));
    assert!(late.err.contains("deadline"), "{}", late.err);
}

#[test]
fn a_provider_is_reached_and_ctrl_c_reaches_it_too() {
    let server = OpenAi::new();
    let home = Home::new(&format!(
        "[providers.mine]\ntype = 'openai'\nbase_url = '{}'\napi_key = 'sk-test-12345'\ndefault_model = 'm-0'\n",
        server.url()
    ));
    let chat = home
        .command(&["chat", "--system", "be brief", "hello"])
        .spawn()
        .unwrap();
    let (head, body, mut stream) = server.request();
    assert!(head.starts_with("POST /v1/chat/completions"), "{head}");
    assert!(
        head.to_lowercase()
            .contains("authorization: bearer sk-test-12345"),
        "{head}"
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (body["model"].as_str(), body["stream"].as_bool()),
        (Some("m-0"), Some(true))
    );
    assert_eq!(
        (
            &body["messages"][0]["role"],
            &body["messages"][1]["content"]
        ),
        (&"system".into(), &"hello".into())
    );
    OpenAi::begin(&mut stream);
    OpenAi::say(&mut stream, "Hi ");
    OpenAi::say(&mut stream, "you");
    OpenAi::end(&mut stream);
    drop(stream);
    let answered = ended(chat);
    assert_eq!(
        (answered.code, answered.out.as_str()),
        (Some(0), "Hi you\n"),
        "{answered:?}"
    );

    let mut chat = home.command(&["chat", "hello"]).spawn().unwrap();
    let (_, _, mut stream) = server.request();
    OpenAi::begin(&mut stream);
    OpenAi::say(&mut stream, "I will now");
    first_bytes(&mut chat);
    signal(i32::try_from(chat.id()).unwrap(), Signal::INT);
    let read = std::io::Read::read(&mut stream, &mut [0; 16]);
    assert!(
        matches!(read, Ok(0) | Err(_)),
        "the provider's connection is closed: {read:?}"
    );
    assert!(
        !matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "it is still open"
    );
    assert_eq!(ended(chat).code, Some(130));
    assert!(
        !home.log().contains("sk-test") && !home.log().contains("hello"),
        "{}",
        home.log()
    );
}

#[test]
fn an_unusable_provider_is_known_and_says_why() {
    let home = Home::new("[providers.groq]\napi_key_env = 'NO_SUCH_KEY'\n");
    let listed = home.run(&["models"]);
    assert_eq!(
        (listed.code, listed.out.as_str()),
        (Some(0), "local/local\n")
    );
    assert!(
        listed.err.contains("groq") && listed.err.contains("NO_SUCH_KEY"),
        "{}",
        listed.err
    );
    let asked = home.run(&["chat", "--model", "groq", "x"]);
    assert_eq!(asked.code, Some(1));
    let asked = home.run(&["chat", "--model", "groq/x", "x"]);
    assert!(asked.err.contains("NO_SUCH_KEY"), "{}", asked.err);
}

#[test]
fn keys_in_the_environment_are_found() {
    let home = Home::new("");
    home.configure("");
    fs::write(
        home.path("config/lapce-ai/config.toml"),
        "[discovery]\nloopback = false\n",
    )
    .unwrap();
    let mut command = home.command(&["chat", "--model", "local", "x"]);
    command
        .env("GROQ_API_KEY", "gsk-not-real")
        .stdin(Stdio::null());
    assert_eq!(ended(command.spawn().unwrap()).code, Some(0));
    let status = home.status();
    assert_eq!(
        (
            &status["providers"][0]["name"],
            &status["providers"][0]["source"]
        ),
        (&"groq".into(), &"environment".into())
    );
    assert!(!status.to_string().contains("gsk-"));
}

#[test]
fn many_chats_at_once_do_not_mix() {
    let home = Home::new("[providers.local]\ntokens_per_second = 2000\n");
    let _daemon = home.serve(&[]);
    thread::scope(|scope| {
        for at in 0..8 {
            let home = &home;
            scope.spawn(move || {
                let answer = home.ok(&["chat", &format!("number {at}!")]);
                assert!(
                    answer.contains(&format!("You said: \"number {at}!\"")),
                    "{answer}"
                );
            });
        }
    });
}

/// Stops a thread of a scope, however that ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_handler_that_holds_its_reactor_up_is_counted_and_logged() {
    let home = Home::new("");
    let mut daemon = home.serve(&["--set", "ipc.handler_limit_millis=1"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        // Handlers run nearly all the time, so that one of them is running when the daemon is halted.
        scope.spawn(|| {
            let client = BlockingClient::connect(Options::new(home.socket())).unwrap();
            let body = [7; 2000];
            let mut answer = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let flight = (0..32).map(|_| client.submit(MessageType::ECHO, &body).unwrap());
                for pending in flight.collect::<Vec<_>>() {
                    pending.wait_into(&mut answer).unwrap();
                    assert_eq!(answer, body);
                }
            }
        });
        until("a handler was halted and that was counted", || {
            support::stop(daemon.pid());
            thread::sleep(Duration::from_millis(50));
            signal(daemon.pid(), Signal::CONT);
            home.status()["counters"]["overruns"].as_u64() > Some(0)
        });
    });
    daemon
        .log
        .wait_for("held up every connection of their reactor");
    assert!(daemon.log.seen.contains("WARN"), "{}", daemon.log.seen);
    assert!(
        home.ok(&["status"])
            .contains("sync handlers held their reactor up")
    );
}
