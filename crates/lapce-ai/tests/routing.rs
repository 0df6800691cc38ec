//! docs/routing.md, word by word: each of its configurations runs in a daemon and does what the page says.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lapce_ai_client::ai::{AIRequest, Message, Tool};
use lapce_ai_client::{Class, Client, ErrorCode, MessageType, Options, RequestOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Home, OpenAi, ended, first_bytes, signal, until};

const PAGE: &str = include_str!("../../../docs/routing.md");

/// An answer that ends with it goes on with nothing else.
const HEARTBEAT: &str = ": ping\n\n";

/// The TOML block that the page gives under this heading.
fn example(heading: &str) -> &'static str {
    let (_, section) = PAGE
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let (_, block) = section.split_once("```toml\n").unwrap();
    block.split_once("```").unwrap().0
}

/// Does the same to every request, and counts them.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `answer` makes the whole HTTP answer of the request's text; without one the request hangs.
    fn new(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Self { url, requests }
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: &dyn Fn(&str) -> Option<String>,
) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let whole = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        (body.len() >= length).then_some(text.clone())
    };
    let text = loop {
        match stream.read(&mut chunk) {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return,
        }
        if let Some(text) = whole(&bytes) {
            break text;
        }
    };
    seen.lock().unwrap().push(text.clone());
    match answer(&text) {
        Some(answer) => {
            // Whoever has gone needs none.
            let _ = stream.write_all(answer.as_bytes());
            // Heartbeats for as long as the client bears them.
            while answer.ends_with(HEARTBEAT) && stream.write_all(HEARTBEAT.as_bytes()).is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
            let _ = stream.shutdown(Shutdown::Write);
        }
        // Until the client hangs up.
        None => drop(stream.read(&mut chunk)),
    }
}

fn status(line: &str, headers: &str) -> String {
    format!("HTTP/1.1 {line}\r\n{headers}connection: close\r\ncontent-length: 2\r\n\r\n{{}}")
}

fn stream(text: &str) -> String {
    let event = |delta: Value, reason: Value| json!({"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
    let (said, finish) = (
        event(json!({"content": text}), Value::Null),
        event(json!({}), json!("stop")),
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {said}\n\ndata: {finish}\n\ndata: [DONE]\n\n"
    )
}

/// A streamed answer that took so many tokens.
fn counted(text: &str, input: u64, cached: u64, output: u64) -> String {
    let usage = json!({"id": "1", "model": "m", "choices": [], "usage": {
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": cached}}});
    stream(text).replace("data: [DONE]", &format!("data: {usage}\n\ndata: [DONE]"))
}

/// The page's file of prices, where its configuration expects it.
fn write_prices(home: &Home) {
    let (_, block) = PAGE.split_once("```toml prices.toml\n").unwrap();
    let text = block.split_once("```").unwrap().0;
    std::fs::write(home.path("config/lapce-ai/prices.toml"), text).unwrap();
}

fn good(name: &'static str) -> Server {
    Server::new(move |_| Some(stream(name)))
}

fn down() -> Server {
    Server::new(|_| Some(status("503 Service Unavailable", "")))
}

/// A home with the page's example, and each server in the place of the provider of its name.
fn home(heading: &str, servers: &[(&str, &Server)]) -> Home {
    let ours = |line: &&str| !line.starts_with("type =") && !line.starts_with("base_url =");
    let lines = example(heading).lines().filter(ours);
    let mut config: String = lines.map(|line| format!("{line}\n")).collect();
    for (name, server) in servers {
        let section = format!("[providers.{name}]\n");
        let place = format!(
            "{section}type = \"openai\"\nbase_url = \"{}\"\n",
            server.url
        );
        assert!(config.contains(&section), "{section}");
        config = config.replace(&section, &place);
    }
    Home::new(&config)
}

/// The last event of an answer.
fn finish(home: &Home, args: &[&str]) -> Value {
    let mut all = vec!["chat", "--json"];
    all.extend(args);
    let out = home.ok(&all);
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

fn outcomes(finish: &Value) -> Vec<String> {
    let attempts = finish["attempts"].as_array().into_iter().flatten();
    let one = |attempt: &Value| {
        let text = |name: &str| attempt[name].as_str().unwrap_or("").to_owned();
        format!("{} {} {}", text("provider"), text("outcome"), text("why"))
    };
    attempts
        .map(|attempt| one(attempt).trim_end().to_owned())
        .collect()
}

fn health(home: &Home, name: &str) -> Value {
    let live: Value = serde_json::from_str(&home.ok(&["providers", "--live", "--json"])).unwrap();
    let mut providers = live["providers"].as_array().unwrap().iter();
    providers.find(|provider| provider["name"] == name).unwrap()["health"].clone()
}

#[test]
fn every_example_of_the_page_is_accepted() {
    let mut blocks = 0;
    for block in PAGE.split("```toml\n").skip(1) {
        let text = block.split_once("```").unwrap().0;
        let home = Home::new(text);
        write_prices(&home);
        let checked = home.run(&["config", "--check"]);
        assert_eq!(checked.code, Some(0), "{text}\n{checked:?}");
        blocks += 1;
    }
    assert!(blocks >= 10, "{blocks}");
}

#[test]
fn failover_answers_and_says_why() {
    let (openai, groq) = (down(), good("from groq"));
    let home = home("Failover", &[("openai", &openai), ("groq", &groq)]);
    let finish = finish(&home, &["-m", "best", "hi"]);
    assert_eq!(
        outcomes(&finish),
        ["openai failed overloaded", "groq answered"]
    );
    assert_eq!(home.ok(&["chat", "-m", "BEST", "hi"]), "from groq\n");
    let whole: Value =
        serde_json::from_str(&home.ok(&["chat", "--json", "--no-stream", "-m", "best", "hi"]))
            .unwrap_or_default();
    // This server only streams, which is an answer all the same.
    assert_eq!(whole["provider"], "groq");
    assert_eq!(outcomes(&whole).len(), 2);
    assert_eq!((openai.count(), groq.count()), (3, 3));
    assert!(
        home.log().contains("openai/gpt-5.4 failed: overloaded"),
        "{}",
        home.log()
    );
    let failed = home.run(&["chat", "-m", "nothing-like-it", "hi"]);
    assert_ne!(failed.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_with_tools_is_not_sent_where_there_are_none() {
    let openai = good("from openai");
    let home = home("What a target can do", &[("openai", &openai)]);
    let _daemon = home.serve(&[]);
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let tool = Tool {
        name: "add".into(),
        description: None,
        parameters: json!({"type": "object"}),
        strict: None,
    };
    let request = AIRequest {
        tools: Some(vec![tool]),
        stream: Some(false),
        ..AIRequest::new("research", vec![Message::user("1 + 1?")])
    };
    // Nobody here could reach Perplexity: it is not even tried.
    let answer = client.complete(&request).await.unwrap();
    assert_eq!(answer.content, "from openai");
    let skipped = &answer.attempts[0];
    assert_eq!(
        (
            skipped.provider.as_str(),
            skipped.outcome.as_str(),
            skipped.why.as_deref()
        ),
        ("perplexity", "skipped", Some("lacks_tools"))
    );
    let request = AIRequest {
        model: "perplexity/sonar".into(),
        ..request
    };
    let error = client.complete(&request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unsupported), "{error}");
    client.close().await;
}

#[test]
fn time_outs_are_typed_and_end_the_request() {
    let slow = Server::new(|_| None);
    let home = home("Time-outs", &[("slow", &slow)]);
    let failed = home.run(&["chat", "-m", "slow/m", "hi"]);
    assert!(
        failed.err.contains("the first token took too long"),
        "{failed:?}"
    );
    let failed = home.run(&["chat", "-m", "slow/m", "--deadline", "0.2", "hi"]);
    assert!(failed.err.contains("deadline"), "{failed:?}");
    assert_eq!(health(&home, "slow")["cancelled"], 1, "by its own deadline");
}

#[test]
fn a_breaker_opens_and_the_live_view_shows_it() {
    let failing = Server::new(|_| Some(status("500 Internal Server Error", "")));
    let home = home("Circuit breaker", &[("office", &failing)]);
    for _ in 0..3 {
        home.run(&["chat", "-m", "office/m", "hi"]);
    }
    let health = health(&home, "office");
    assert_eq!(health["breakers"][0]["state"], "open", "{health}");
    assert_eq!(health["breakers"][0]["model"], "m");
    let asked = failing.count();
    let failed = home.run(&["chat", "-m", "office/m", "hi"]);
    assert!(failed.err.contains("left alone for a while"), "{failed:?}");
    assert_eq!(failing.count(), asked);
    let table = home.ok(&["providers", "--live"]);
    assert!(table.contains("m open for "), "{table}");
}

#[test]
fn a_retry_comes_after_the_wait_that_was_asked_for() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let busy = Server::new(move |_| {
        let mut times = seen.lock().unwrap();
        times.push(Instant::now());
        Some(match times.len() {
            1 => status("503 Service Unavailable", "retry-after: 1\r\n"),
            _ => stream("at last"),
        })
    });
    let home = home("Retries", &[("office", &busy)]);
    assert_eq!(home.ok(&["chat", "-m", "office/m", "hi"]), "at last\n");
    let times = times.lock().unwrap();
    assert!(
        times[1] - times[0] >= Duration::from_secs(1),
        "it did not wait"
    );
}

#[test]
fn keys_take_turns_and_a_refused_one_rests() {
    let server = Server::new(|text| {
        Some(
            match text.contains("Bearer key-number-1") || text.contains("bearer key-number-1") {
                true => status("401 Unauthorized", ""),
                false => stream("fine"),
            },
        )
    });
    let home = home("Several keys", &[("groq", &server)]);
    let first = finish(&home, &["-m", "groq/m", "hi"]);
    assert_eq!(
        outcomes(&first),
        ["groq failed authentication", "groq answered"]
    );
    assert_eq!(first["attempts"][0]["key"], 1);
    assert!(!first.to_string().contains("key-number"), "{first}");
    for _ in 0..3 {
        assert_eq!(home.ok(&["chat", "-m", "groq/m", "hi"]), "fine\n");
    }
    assert_eq!(server.count(), 5, "the refused key is not tried again");
    let health = health(&home, "groq");
    assert_eq!(
        (&health["keys"], &health["restingKeys"]),
        (&json!(2), &json!(1))
    );
    assert!(!home.log().contains("key-number"), "{}", home.log());
}

#[test]
fn weights_spread_the_requests() {
    let (openai, groq) = (good("a"), good("b"));
    let home = home("Load balancing", &[("openai", &openai), ("groq", &groq)]);
    let mut children = Vec::new();
    for _ in 0..40 {
        let mut command = home.command(&["chat", "-m", "spread", "hi"]);
        children.push(command.stdout(Stdio::piped()).spawn().unwrap());
    }
    for child in children {
        assert_eq!(ended(child).code, Some(0));
    }
    assert_eq!(openai.count() + groq.count(), 40);
    // Three in four are meant; what is refused here happens once in fifty thousand runs.
    assert!(
        openai.count() > 15 && groq.count() > 0,
        "{} and {}",
        openai.count(),
        groq.count()
    );
}

#[test]
fn the_cheapest_comes_first() {
    let (openai, groq) = (good("a"), good("b"));
    let home = home("Load balancing", &[("openai", &openai), ("groq", &groq)]);
    assert_eq!(home.ok(&["chat", "-m", "thrifty", "hi"]), "b\n");
    assert_eq!((openai.count(), groq.count()), (0, 1));
}

#[test]
fn an_answer_says_what_it_cost_and_the_ledger_keeps_it() {
    let office = Server::new(|_| Some(counted("fine", 1000, 400, 100)));
    let home = home("What answers cost", &[("office", &office)]);
    write_prices(&home);
    let priced = finish(&home, &["-m", "office/qwen3-coder", "hi"]);
    // 600 at 0.2, 400 at 0.05 and 100 at 0.8 dollars a million.
    assert_eq!(priced["costNanoUsd"], 220_000, "{priced}");
    let whole = home.ok(&[
        "chat",
        "--json",
        "--no-stream",
        "-m",
        "office/qwen3-coder",
        "hi",
    ]);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["costNanoUsd"], 220_000, "{whole}");
    let unpriced = finish(&home, &["-m", "office/other", "hi"]);
    assert!(unpriced.get("costNanoUsd").is_none(), "{unpriced}");
    let spend = |args: &[&str]| -> Value {
        let args = [&["spend", "--json"], args].concat();
        serde_json::from_str(&home.ok(&args)).unwrap()
    };
    until("the ledger has all of it", || {
        spend(&[])["total"]["requests"] == 3
    });
    let total = &spend(&[])["total"];
    assert_eq!(
        (
            &total["costNanoUsd"],
            &total["unpriced"],
            &total["inputTokens"]
        ),
        (&json!(440_000), &json!(1), &json!(3000))
    );
    let models = spend(&["--by", "model", "--days", "1"]);
    assert_eq!(models["rows"][0]["model"], "office/qwen3-coder");
    assert_eq!(models["rows"][0]["cachedInputTokens"], 800);
    let requests = spend(&["--by", "request"]);
    assert_eq!(requests["rows"].as_array().unwrap().len(), 3);
    assert_eq!(requests["rows"][0]["costNanoUsd"], Value::Null);
    let table = home.ok(&["spend"]);
    assert!(table.contains("$0.00044"), "{table}");
    let live = home.ok(&["providers", "--live"]);
    assert!(
        live.contains("THIS MONTH") && live.contains("$0.00044"),
        "{live}"
    );
}

#[test]
fn vectors_cost_something_and_counting_does_not() {
    let office = Server::new(|_| {
        let vectors = json!({"model": "qwen3-embedding", "data": [{"index": 0, "embedding": [0.5]}],
            "usage": {"prompt_tokens": 1000, "total_tokens": 1000}});
        let text = vectors.to_string();
        Some(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        ))
    });
    let home = home("What answers cost", &[("office", &office)]);
    write_prices(&home);
    let embed = ["embed", "--json", "-m", "office/qwen3-embedding", "hi"];
    let answer: Value = serde_json::from_str(&home.ok(&embed)).unwrap();
    // At 0.2 dollars a million.
    assert_eq!(answer["costNanoUsd"], 200_000, "{answer}");
    home.ok(&["count", "-m", "office/qwen3-coder", "hi"]);
    until("the ledger has it", || {
        let spend: Value = serde_json::from_str(&home.ok(&["spend", "--json"])).unwrap();
        spend["total"]["requests"] == 1
    });
    home.ok(&["stop"]);
    let spend: Value = serde_json::from_str(&home.ok(&["spend", "--json"])).unwrap();
    let total = &spend["total"];
    assert_eq!(
        (
            &total["requests"],
            &total["inputTokens"],
            &total["costNanoUsd"]
        ),
        (&json!(1), &json!(1000), &json!(200_000)),
        "{spend}"
    );
}

#[test]
fn a_wrong_file_of_prices_is_told_of() {
    let home = Home::new("[spend]\nprices = 'prices.toml'\n");
    for text in [None, Some("[[price]]\nprovider = 'p'\n")] {
        if let Some(text) = text {
            std::fs::write(home.path("config/lapce-ai/prices.toml"), text).unwrap();
        }
        for args in [&["config", "--check"][..], &["serve"]] {
            let ended = home.run(args);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.err.contains("spend.prices"), "{ended:?}");
        }
    }
}

#[test]
fn budgets_refuse_warn_and_survive_a_restart() {
    // Of gpt-5.4 400,000 tokens are 6 dollars, and of the other one 66 million are 39.60.
    let openai = Server::new(|_| Some(counted("from openai", 10, 0, 400_000)));
    let groq = Server::new(|_| Some(counted("from groq", 10, 0, 66_000_000)));
    let home = home("Budgets", &[("openai", &openai), ("groq", &groq)]);
    let first = finish(&home, &["-m", "best", "hi"]);
    assert_eq!(first["costNanoUsd"], 6_000_025_000_u64, "{first}");
    assert!(first.get("warnings").is_none(), "{first}");
    let second = finish(&home, &["-m", "best", "hi"]);
    assert_eq!(
        outcomes(&second),
        ["openai skipped budget_spent", "groq answered"]
    );
    let warning = second["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("budget `all` is over its soft limit of $40.00 a month: $45.60 spent"),
        "{warning}"
    );
    assert!(home.log().contains(warning), "{}", home.log());
    let refused = |model: &str, budget: &str| {
        let failed = home.run(&["chat", "-m", model, "hi"]);
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.err.contains("budget_spent"), "{failed:?}");
        assert!(
            failed.err.contains(&format!("budget `{budget}`")),
            "{failed:?}"
        );
    };
    refused("openai/gpt-5.4", "openai");
    refused("groq/openai/gpt-oss-120b", "each");
    let live: Value = serde_json::from_str(&home.ok(&["providers", "--live", "--json"])).unwrap();
    assert_eq!(
        live["budgets"][0]["spentNanoUsd"], 45_600_026_500_u64,
        "{live}"
    );
    assert_eq!(live["budgets"][0]["reservedNanoUsd"], 0);
    home.ok(&["stop"]);
    refused("groq/openai/gpt-oss-120b", "each");
    assert_eq!((openai.count(), groq.count()), (1, 1));
}

#[test]
fn the_same_answer_is_given_again_and_costs_nothing() {
    let office = Server::new(|_| Some(counted("once", 10, 0, 10)));
    let home = home("Answers that are given again", &[("office", &office)]);
    let ask = |more: &[&str]| finish(&home, &[&["-m", "office/m", "hi"], more].concat());
    let cold = ["--temperature", "0"];
    assert!(ask(&cold).get("cached").is_none());
    let again = ask(&cold);
    assert_eq!(
        (&again["cached"], &again["costNanoUsd"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(
        home.ok(&["chat", "-m", "office/m", "hi", "--temperature", "0"]),
        "once\n"
    );
    assert_eq!(office.count(), 1);
    assert!(ask(&[]).get("cached").is_none(), "it may vary");
    assert!(ask(&[]).get("cached").is_none());
    assert_eq!(office.count(), 3);
    let live = home.ok(&["providers", "--live"]);
    assert!(live.contains("cache: 1 answers"), "{live}");
    until("the ledger has all of it", || {
        let spend: Value = serde_json::from_str(&home.ok(&["spend", "--json"])).unwrap();
        spend["total"]["requests"] == 5 && spend["total"]["cached"] == 2
    });
}

#[test]
fn of_the_same_requests_at_the_same_time_one_is_sent() {
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let office = Server::new(move |_| {
        // Until the test lets go of the other end.
        let _ = gate.lock().unwrap().recv();
        Some(counted("once", 10, 0, 10))
    });
    let home = home("Answers that are given again", &[("office", &office)]);
    let _daemon = home.serve(&[]);
    let ask = || {
        let mut command = home.command(&[
            "chat",
            "--json",
            "-m",
            "office/m",
            "--temperature",
            "0",
            "hi",
        ]);
        command.spawn().unwrap()
    };
    let mut first = ask();
    until("it is sent", || office.count() == 1);
    let others = [ask(), ask(), ask()];
    until("they have joined", || {
        let live = home.ok(&["providers", "--live", "--json"]);
        let live: Value = serde_json::from_str(&live).unwrap();
        live["cache"]["joined"] == 3
    });
    // Whoever asked first goes; the others are not told.
    signal(i32::try_from(first.id()).unwrap(), Signal::KILL);
    first.wait().unwrap();
    drop(open);
    for other in others {
        let ended = ended(other);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let last: Value = serde_json::from_str(ended.out.lines().last().unwrap()).unwrap();
        assert_eq!(last["cached"], true, "{last}");
        assert!(ended.out.contains("once"));
    }
    assert_eq!(office.count(), 1);
}

#[test]
fn a_client_that_cancels_or_goes_hangs_up_on_the_provider() {
    for kill in [Signal::INT, Signal::KILL] {
        for (begun, args) in [
            (false, &["chat", "-m", "upstream/m", "hi"][..]),
            (true, &["chat", "-m", "upstream/m", "hi"]),
            (false, &["chat", "--no-stream", "-m", "upstream/m", "hi"]),
        ] {
            let upstream = OpenAi::new();
            let config = format!(
                "[providers.upstream]\ntype = 'openai'\nbase_url = '{}'\n",
                upstream.url()
            );
            let home = Home::new(&config);
            let _daemon = home.serve(&[]);
            let mut child = home.command(args).spawn().unwrap();
            let (_, _, mut connection) = upstream.request();
            if begun {
                OpenAi::begin(&mut connection);
                OpenAi::say(&mut connection, "A first word");
                first_bytes(&mut child);
            }
            let gone = Instant::now();
            signal(i32::try_from(child.id()).unwrap(), kill);
            let mut rest = Vec::new();
            // A reset is as good as an end.
            let _ = connection.read_to_end(&mut rest);
            println!(
                "{kill:?}, {args:?}, begun {begun}: the provider's connection closed after {:?}",
                gone.elapsed()
            );
            ended(child);
            until("nothing is under way", || {
                health(&home, "upstream")["inFlight"] == 0
            });
            let health = health(&home, "upstream");
            assert_eq!(
                (&health["cancelled"], &health["failed"]),
                (&json!(1), &json!(0)),
                "{health}"
            );
        }
    }
}

/// Each request gets its answer when the test says so.
fn on_demand() -> (Server, mpsc::Sender<()>) {
    let (let_go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let server = Server::new(move |_| {
        // Whoever is gone lets go of all.
        let _ = wait.lock().unwrap().recv();
        Some(stream("done"))
    });
    (server, let_go)
}

#[test]
fn requests_wait_for_their_turn_and_those_that_do_not_fit_are_sent_away() {
    let (office, let_go) = on_demand();
    let home = home("Requests at once", &[("office", &office)]);
    let _daemon = home.serve(&[]);
    let ask = || {
        let mut command = home.command(&["chat", "--json", "-m", "office/m", "hi"]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let first = ask();
    until("the first one is asked for", || office.count() == 1);
    let second = ask();
    until("the second one waits", || {
        health(&home, "office")["waiting"] == 1
    });
    let third = home.run(&["chat", "-m", "office/m", "hi"]);
    assert_ne!(third.code, Some(0));
    assert!(
        third.err.contains("too many requests wait for it"),
        "{third:?}"
    );
    let live = home.ok(&["providers", "--live"]);
    let limit = live.lines().find(|line| line.contains("in flight"));
    let words: Vec<&str> = limit.unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[..5], ["office", "in", "flight", "0", "1"], "{live}");
    let_go.send(()).unwrap();
    assert_eq!(ended(first).code, Some(0));
    until("the second one is asked for", || office.count() == 2);
    let_go.send(()).unwrap();
    let second = ended(second);
    let last: Value = serde_json::from_str(second.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        outcomes(&last),
        ["office skipped limit_provider_in_flight", "office answered"]
    );
    let health = health(&home, "office");
    assert_eq!((&health["queued"], &health["shed"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&health["waiting"], &health["maxWaiting"]),
        (&json!(0), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_class_of_a_request_says_who_goes_first() {
    let (office, let_go) = on_demand();
    let config = format!(
        "[providers.office]\ntype = 'openai'\nbase_url = '{}'\nmax_in_flight = 1\n",
        office.url
    );
    let home = Home::new(&config);
    let _daemon = home.serve(&[]);
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let ask = |text: &str, class| {
        let client = client.clone();
        let request = AIRequest {
            stream: Some(false),
            ..AIRequest::new("office/m", vec![Message::user(text)])
        };
        let options = RequestOptions {
            class,
            ..RequestOptions::default()
        };
        tokio::spawn(async move { client.complete_with(&request, &options).await.unwrap() })
    };
    let mut asked = vec![ask("the first", Class::ByType)];
    until("it is asked for", || office.count() == 1);
    for (waiting, text, class) in [
        (1, "no hurry", Class::Bulk),
        (2, "urgent", Class::Interactive),
    ] {
        asked.push(ask(text, class));
        until("it waits", || health(&home, "office")["waiting"] == waiting);
    }
    for _ in 0..3 {
        let_go.send(()).unwrap();
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap().content, "done");
    }
    let requests = office.requests.lock().unwrap().clone();
    let order = ["the first", "urgent", "no hurry"];
    for (request, text) in requests.iter().zip(order) {
        assert!(request.contains(text), "{requests:?}");
    }
    client.close().await;
}

#[test]
fn a_rate_that_is_used_up_says_how_long_to_wait() {
    let office = good("fine");
    let home = home("Rate limits", &[("office", &office)]);
    assert_eq!(home.ok(&["chat", "-m", "office/large", "hi"]), "fine\n");
    let failed = home.run(&["chat", "-m", "office/large", "hi"]);
    assert!(failed.err.contains("as much was asked for"), "{failed:?}");
    assert!(failed.err.contains("try again in"), "{failed:?}");
    // Other models have what is left of the provider's.
    for _ in 0..2 {
        assert_eq!(home.ok(&["chat", "-m", "office/m", "hi"]), "fine\n");
    }
    let failed = home.run(&["chat", "-m", "office/m", "hi"]);
    assert!(failed.err.contains("try again in"), "{failed:?}");
    assert_eq!(office.count(), 3);
    assert_eq!(health(&home, "office")["shed"], 2);
    let live = home.ok(&["providers", "--live"]);
    assert!(live.contains("large tokens per minute"), "{live}");
}

#[test]
fn a_key_that_has_nothing_left_is_not_used_until_its_reset() {
    let spent = "x-ratelimit-limit-requests: 30\r\nx-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1m40s\r\n";
    let server = Server::new(move |_| {
        let answer = stream("fine");
        Some(answer.replacen("content-type", &format!("{spent}content-type"), 1))
    });
    let home = home("Limits that providers tell of", &[("groq", &server)]);
    for _ in 0..2 {
        assert_eq!(home.ok(&["chat", "-m", "groq/m", "hi"]), "fine\n");
    }
    let failed = home.run(&["chat", "-m", "groq/m", "hi"]);
    assert!(failed.err.contains("try again in"), "{failed:?}");
    let requests = server.requests.lock().unwrap();
    let with = |key: &str| requests.iter().filter(|text| text.contains(key)).count();
    assert_eq!((with("key-number-1"), with("key-number-2")), (1, 1));
    let limits = &health(&home, "groq")["limits"];
    assert_eq!(limits.as_array().unwrap().len(), 2, "{limits}");
    assert_eq!(
        (&limits[1]["key"], &limits[1]["left"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(limits[1]["learned"], true);
}

#[test]
fn each_client_has_its_limits() {
    let config = format!("{}\n[providers.local]\n", example("Clients"));
    let home = Home::new(&config);
    for _ in 0..2 {
        home.ok(&["chat", "-m", "local", "hi"]);
    }
    let failed = home.run(&["chat", "-m", "local", "hi"]);
    assert!(
        failed.err.contains("this client made as many requests"),
        "{failed:?}"
    );
    let us = rustix::process::geteuid().as_raw();
    let own = config.replace("4294967294", &us.to_string());
    let home = Home::new(&own);
    for _ in 0..4 {
        home.ok(&["chat", "-m", "local", "hi"]);
    }
}

#[test]
fn a_provider_s_own_breaker_is_its_own() {
    let failing = || Server::new(|_| Some(status("500 Internal Server Error", "")));
    let (office, groq) = (failing(), failing());
    let home = home(
        "A breaker of one's own",
        &[("office", &office), ("groq", &groq)],
    );
    for name in ["office", "groq"] {
        for _ in 0..2 {
            home.run(&["chat", "-m", &format!("{name}/m"), "hi"]);
        }
    }
    assert_eq!(health(&home, "office")["breakers"][0]["state"], "open");
    assert_eq!(health(&home, "groq")["breakers"], json!([]));
}

#[test]
fn a_probe_tells_how_an_unused_provider_does() {
    let list = |_: &str| {
        let body = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
        let length = body.len();
        Some(format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    };
    let office = Server::new(list);
    let home = home("Active probes", &[("office", &office)]);
    let _daemon = home.serve(&[]);
    until("it was probed", || {
        !health(&home, "office")["probe"].is_null()
    });
    let found = health(&home, "office");
    assert_eq!(found["probe"]["ok"], true, "{found}");
    assert_eq!(found["asked"], 0, "a probe is no request");
    let requests = office.requests.lock().unwrap().clone();
    assert!(requests[0].starts_with("GET /v1/models "), "{requests:?}");
    let table = home.ok(&["providers", "--live"]);
    assert!(
        table.contains(" ms, ") && table.contains(" s ago"),
        "{table}"
    );
}

#[test]
fn nobody_is_probed_who_is_not_configured_to_be() {
    let office = good("x");
    let home = home("Retries", &[("office", &office)]);
    let _daemon = home.serve(&[]);
    // Longer than the example of the page waits.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(office.count(), 0);
}

#[test]
fn a_late_first_token_is_hedged() {
    let (openai, groq) = (Server::new(|_| None), good("from groq"));
    let home = home("Hedged requests", &[("openai", &openai), ("groq", &groq)]);
    let _daemon = home.serve(&[]);
    for args in [
        &["-m", "quick", "hi"][..],
        &["--no-stream", "-m", "quick", "hi"],
    ] {
        let finish = finish(&home, args);
        assert_eq!(outcomes(&finish), ["openai lost", "groq answered"]);
        assert_eq!(finish["attempts"][1]["purpose"], "hedge");
        assert!(
            finish["attempts"][0]["tookMs"].as_u64().unwrap() >= 300,
            "{finish}"
        );
    }
    until("the loser is let go of", || {
        health(&home, "openai")["inFlight"] == 0
    });
    let lost = health(&home, "openai");
    assert_eq!(
        (&lost["cancelled"], &lost["failed"]),
        (&json!(2), &json!(0))
    );
}

/// The start of an answer that never ends: it is cut where it stands.
fn cut(text: &str) -> String {
    let whole = stream(text);
    let (begun, _) = whole.split_once("data: [DONE]").unwrap();
    let at = begun.rfind("data: ").unwrap();
    begun[..at].to_owned()
}

#[test]
fn another_goes_on_with_an_answer_that_breaks_off() {
    let openai = Server::new(|_| Some(cut("The quick brown fox jumps over ")));
    let groq = good("brown fox jumps over the lazy dog.");
    let home = home(
        "Mid-stream failover",
        &[("openai", &openai), ("groq", &groq)],
    );
    let mut daemon = home.serve(&[]);
    let out = home.ok(&["chat", "--json", "-m", "steady", "hi"]);
    let events: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["start", "text", "continued", "text", "finish"],
        "{out}"
    );
    assert_eq!(events[2]["provider"], "groq");
    assert_eq!(
        events[2]["textBytes"],
        "The quick brown fox jumps over ".len()
    );
    assert_eq!(events[3]["text"], "the lazy dog.", "not said again");
    assert_eq!(
        outcomes(&events[4]),
        ["openai failed stream_cut", "groq answered"]
    );
    assert_eq!(events[4]["attempts"][1]["purpose"], "continuation");
    let asked = groq.requests.lock().unwrap().last().unwrap().clone();
    assert!(
        asked.contains(r#""role":"assistant","content":"The quick brown fox jumps over ""#),
        "{asked}"
    );
    daemon.log.wait_for("another goes on with an answer");
    let ended = home.run(&["chat", "-m", "steady", "hi"]);
    assert_eq!(ended.out, "The quick brown fox jumps over the lazy dog.\n");
    assert!(ended.err.contains("goes on with it"), "{ended:?}");
}

#[test]
fn a_stall_is_a_break_however_many_heartbeats_come() {
    let openai = Server::new(|_| Some(cut("The quick ") + HEARTBEAT));
    let groq = good("brown fox.");
    let home = home(
        "Mid-stream failover",
        &[("openai", &openai), ("groq", &groq)],
    );
    assert_eq!(
        home.ok(&["chat", "-m", "steady", "hi"]),
        "The quick brown fox.\n"
    );
}

#[test]
fn a_request_that_its_deadline_cuts_leaves_its_trail_in_the_log() {
    let (down, slow) = (down(), Server::new(|_| None));
    let home = home("Failover", &[("openai", &down), ("groq", &slow)]);
    let mut daemon = home.serve(&[]);
    let failed = home.run(&["chat", "-m", "best", "--deadline", "0.5", "hi"]);
    assert!(failed.err.contains("deadline"), "{failed:?}");
    daemon.log.wait_for("openai/gpt-5.4 failed: overloaded");
    daemon.log.wait_for("groq/openai/gpt-oss-120b ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn so_does_one_that_is_cut_while_its_client_does_not_read() {
    let home = Home::new("[providers.local]\ntokens = 1000000\n");
    let mut daemon = home.serve(&[]);
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let request = AIRequest::new("local/local", vec![Message::user("hi")]);
    let body = serde_json::to_vec(&request).unwrap();
    let options = RequestOptions {
        deadline: Some(Duration::from_millis(500)),
        ..RequestOptions::default()
    };
    let unread = client
        .stream(MessageType::CHAT, &body, &options)
        .await
        .unwrap();
    // Whether the server's clock strikes first or the pool's is a matter of luck.
    daemon.log.wait_for("local/local ");
    assert!(daemon.log.seen.contains("deadline"), "{}", daemon.log.seen);
    drop(unread);
    client.close().await;
}
