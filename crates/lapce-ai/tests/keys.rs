//! No key ever comes out, whatever the providers do: every word that a daemon and its commands say is looked through.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use lapce_ai_client::{Client, Options, ai};
use serde_json::json;
use support::{Canned, Home, OpenAi, ended};

/// How many bytes of a key in a row are taken for a leak.
const TELLING: usize = 9;

/// The keys, by where each comes from.
const KEYS: [(&str, &str); 5] = [
    ("value", "sk-Vq81LkP0zzXr5mNa27"),
    ("variable", "gsk_Wd93MtQ1yyYs6nOb38"),
    ("file", "key-Xf04NuR2xxZt7pPc49"),
    ("command", "tok.Yg15OvS3wwAu8qQd50"),
    ("header", "hdr_Zh26PwT4vvBv9rRe61"),
];

/// What the upstream says about `key`: each way of repeating it that we could think of.
fn answers(key: &str) -> Vec<Canned> {
    let error = |status, message: &str| Canned {
        status,
        ..Canned::json(
            &json!({"error": {"message": message, "code": key, "type": key, "param": key}}),
        )
    };
    let page = |status, body: String| Canned {
        status,
        media_type: "text/html",
        headers: format!("x-request-id: {key}\r\nwww-authenticate: Bearer {key}\r\n"),
        body,
    };
    let delta = json!({"id": key, "choices": [{"delta": {"content": "ok"}}]});
    let mut all = vec![
        error(
            401,
            &format!("Incorrect API key provided: {key}. Find yours elsewhere."),
        ),
        error(400, &format!("{key}{key} {}", key.repeat(200))),
        error(500, key),
        page(
            502,
            format!("<html><title>Bad gateway {key}</title>{key}</html>"),
        ),
        page(403, format!("denied: {key}")),
        Canned {
            status: 308,
            headers: format!("location: https://elsewhere.example/?key={key}\r\n"),
            ..Canned::json(&json!({}))
        },
        // No JSON, where serde's own words repeat what is wrong.
        Canned {
            body: format!("{{\"choices\": \"{key}\"}}"),
            ..Canned::json(&json!({}))
        },
        Canned {
            body: key.to_owned(),
            ..Canned::json(&json!({}))
        },
        page(200, key.to_owned()),
        // In the middle of a stream.
        Canned::stream(&[
            delta.clone(),
            json!({"error": {"message": format!("lost {key}"), "code": key}}),
        ]),
        Canned {
            body: format!("data: {delta}\n\ndata: {{\"choices\": \"{key}\"}}\n\n"),
            ..Canned::stream(&[])
        },
        Canned {
            body: format!("data: {delta}\n\n"),
            ..Canned::stream(&[])
        },
    ];
    // At every place where the message may be cut.
    for shown in (1..key.len()).step_by(4) {
        all.push(error(400, &format!("{}{key}", "x".repeat(2048 - shown))));
        all.push(error(400, &format!("{}{key}", "x".repeat(512 - shown))));
    }
    // The last, since the key rests then.
    all.push(error(429, key));
    all
}

fn config(home: &Home, url: &str) -> String {
    let key = |name: &str| KEYS.iter().find(|(from, _)| *from == name).unwrap().1;
    let (file, script) = (home.path("the.key"), home.path("print-key"));
    fs::write(&file, format!("{}\n", key("file"))).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(
        &script,
        format!("#!/bin/sh\necho {0} >&2\necho {0}\n", key("command")),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    // Each answer is for one request, however many failed before.
    let mut text = String::from(
        "[log]\nlevel = 'trace'\n[retries]\nattempts = 1\n[breaker]\nmin_calls = 10000\n",
    );
    for (name, line) in [
        ("value", format!("api_key = '{}'", key("value"))),
        ("variable", "api_key_env = 'THE_KEY'".to_owned()),
        ("file", format!("api_key_file = '{}'", file.display())),
        (
            "command",
            format!("api_key_command = ['{}']", script.display()),
        ),
        (
            "header",
            format!("headers = {{ Authorization = 'Bearer {}' }}", key("header")),
        ),
        // What no command should print: it fails, and says so with the key in its words.
        (
            "failing",
            format!(
                "api_key_command = 'echo {0}; echo {0} >&2; exit 1'",
                key("command")
            ),
        ),
    ] {
        write!(
            text,
            "[providers.{name}]\ntype = 'compatible'\nbase_url = '{url}'\n{line}\n"
        )
        .unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_key_comes_out_however_often_it_is_repeated() {
    let server = OpenAi::new();
    let home = Home::new("");
    home.configure(&config(&home, &server.url()));
    let variable = KEYS[1].1;
    let mut serve = home.command(&["serve"]);
    serve.env("THE_KEY", variable).env("RUST_LOG", "trace");
    let mut child = serve.spawn().unwrap();
    let mut log = support::Log::of(&mut child);
    log.wait_for("serving");
    let mut daemon = support::Daemon { child, log };

    let each = answers(KEYS[0].1).len();
    let upstream = thread::spawn(move || {
        let mut seen = Vec::new();
        for (_, key) in KEYS {
            for at in 0..answers(key).len() {
                let (head, _, mut stream) = server.request();
                // The key did get there, or this test would prove nothing.
                assert!(head.contains(&format!("Bearer {key}")), "{head}");
                answers(key)[at].send(&mut stream);
                seen.push(key);
            }
        }
        seen.len()
    });
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let mut said = String::new();
    for (name, key) in KEYS {
        for at in 0..answers(key).len() {
            // Chats in both forms, and whatever else reaches a provider.
            let request = ai::AIRequest::new(format!("{name}/m"), vec![ai::Message::user("x")]);
            let outcome = if at % 2 == 0 {
                client
                    .complete(&request)
                    .await
                    .map(|answer| format!("{answer:?}"))
            } else {
                let mut stream = client.chat(&request).await.unwrap();
                loop {
                    match stream.next().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break Err(error),
                        None => break Ok("an end".to_owned()),
                    }
                }
            };
            let error = outcome.expect_err("it must fail");
            writeln!(said, "{error}\n{error:?}").unwrap();
        }
    }
    let failing = ai::AIRequest::new("failing/m", vec![ai::Message::user("x")]);
    let error = client.complete(&failing).await.unwrap_err();
    writeln!(said, "{error}\n{error:?}").unwrap();
    assert!(
        error
            .to_string()
            .contains("`/bin/sh` (api_key_command) failed"),
        "{error}"
    );
    client.close().await;
    assert!(upstream.join().unwrap() >= KEYS.len() * each);

    for args in [
        &["status"][..],
        &["status", "--json"],
        &["config"],
        &["config", "--json"],
        &["config", "--check"],
        &["providers"],
        &["providers", "--live"],
        &["providers", "--json"],
        &["chat", "--model", "failing/m", "x"],
        &["chat", "--json", "--model", "nobody", "x"],
    ] {
        let mut command = home.command(args);
        let ended = ended(command.env("THE_KEY", variable).spawn().unwrap());
        write!(said, "{args:?}\n{}{}", ended.out, ended.err).unwrap();
    }
    support::signal(daemon.pid(), rustix::process::Signal::TERM);
    assert!(daemon.wait().success());
    daemon.log.wait_for("stopped");
    assert!(daemon.log.seen.contains("TRACE"), "the log has everything");
    said.push_str(&daemon.log.seen);

    assert!(said.contains("[redacted]"));
    for (from, key) in KEYS {
        for at in 0..=key.len() - TELLING {
            let part = &key[at..at + TELLING];
            let found = said.lines().find(|line| line.contains(part));
            assert!(found.is_none(), "the key by {from} came out: {found:?}");
        }
    }
}
