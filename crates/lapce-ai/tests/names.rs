//! What a model's name leads to, and what can be asked: through a real daemon.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use support::{Canned, Home, OpenAi};

fn provider(name: &str, url: &str, more: &str) -> String {
    format!("[providers.{name}]\ntype = 'compatible'\nbase_url = '{url}'\n{more}\n")
}

fn list(models: &[&str]) -> Canned {
    let models: Vec<_> = models
        .iter()
        .map(|id| json!({"id": id, "object": "model"}))
        .collect();
    Canned::json(&json!({"object": "list", "data": models}))
}

#[test]
fn the_lists_of_all_providers_become_one() {
    let (one, two, broken, silent) = (OpenAi::new(), OpenAi::new(), OpenAi::new(), OpenAi::new());
    let mut config = String::from("[aliases]\nfast = 'two/x'\n");
    config += &provider("one", &one.url(), "");
    config += &provider("broken", &broken.url(), "api_key = 'sk-test-12345'");
    config += &provider("silent", &silent.url(), "models_timeout_secs = 1");
    config += &provider("two", &two.url(), "");
    let home = Home::new(&config);
    let _daemon = home.serve(&[]);
    // The first is answered when the last has been asked: one after the other would never end.
    let (asked, was_asked) = mpsc::channel::<()>();
    let first = thread::spawn(move || {
        let (_, _, mut stream) = one.request();
        was_asked.recv().unwrap();
        list(&["a", "b"]).send(&mut stream);
    });
    let last = thread::spawn(move || {
        let (_, _, mut stream) = two.request();
        asked.send(()).unwrap();
        list(&["x"]).send(&mut stream);
    });
    let wrong = thread::spawn(move || {
        let (_, _, mut stream) = broken.request();
        let answer = Canned {
            status: 401,
            ..Canned::json(
                &json!({"error": {"message": "Incorrect key sk-test-12345", "code": "invalid_api_key"}}),
            )
        };
        answer.send(&mut stream);
    });
    // Held open, and never answered.
    let hanging: thread::JoinHandle<TcpStream> = thread::spawn(move || silent.request().2);
    let listed: Value = serde_json::from_str(&home.ok(&["models", "--json"])).unwrap();
    for thread in [first, last, wrong] {
        thread.join().unwrap();
    }
    drop(hanging.join().unwrap());
    let models: Vec<_> = listed["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| {
            format!(
                "{}/{}",
                model["provider"].as_str().unwrap(),
                model["id"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(models, ["one/a", "one/b", "two/x", "local/local"]);
    assert_eq!(
        listed["aliases"],
        json!([{"name": "fast", "model": "two/x"}])
    );
    let errors = listed["errors"].as_array().unwrap();
    let of = |at: usize| errors[at]["message"].as_str().unwrap();
    assert_eq!(
        (
            errors[0]["provider"].as_str(),
            errors[1]["provider"].as_str()
        ),
        (Some("broken"), Some("silent"))
    );
    assert!(of(0).contains("Incorrect key [redacted]"), "{errors:?}");
    assert!(of(1).contains("gave up after 1 s"), "{errors:?}");
}

#[test]
fn names_lead_where_they_should() {
    let server = OpenAi::new();
    let mut config = String::from("[aliases]\nfast = 'big/llama-3'\ngone = 'nobody/x'\n");
    config += &provider("big", &server.url(), "models = ['llama-3', 'qwen-3']");
    config += &format!(
        "[providers.grok]\ntype = 'xai'\nbase_url = '{}'\n",
        server.url()
    );
    config += &provider("other", &server.url(), "");
    let home = Home::new(&config);
    let mut daemon = home.serve(&[]);
    daemon.log.wait_for("serving");
    assert!(
        daemon
            .log
            .seen
            .contains("alias `gone`: no provider or model is called `nobody/x`")
    );
    for (name, model) in [
        ("big/anything", "anything"),
        ("qwen-3", "qwen-3"),
        ("FAST", "llama-3"),
        // xAI's names begin so, and nobody lists this one.
        ("grok-9", "grok-9"),
    ] {
        let chat = home
            .command(&["chat", "--model", name, "x"])
            .spawn()
            .unwrap();
        let (_, body, mut stream) = server.request();
        Canned::stream(&[
            json!({"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}),
        ])
        .send(&mut stream);
        assert_eq!(support::ended(chat).out, "ok\n", "{name}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["model"], model, "{name}");
    }
    for (name, part) in [
        ("qwen3", "near it: big/qwen-3"),
        ("fasst", "near it: fast"),
        (
            "gone",
            "alias `gone`: no provider or model is called `nobody/x`",
        ),
    ] {
        let ended = home.run(&["chat", "--model", name, "x"]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.err.contains(part), "{}", ended.err);
    }
    let plain = home.run(&["models", "--provider", "local"]);
    assert_eq!(
        plain.out, "local/local\n",
        "one provider's list has no aliases"
    );
}
