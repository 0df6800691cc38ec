//! Whoever does not want an answer any more ends the provider's work, through the whole daemon: by a cancel, by going away,
//! by the deadline.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and tells its times"
)]

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lapce_ai_client::ai::{AIRequest, Message};
use lapce_ai_client::{Client, ErrorCode, MessageType, Options, RequestOptions};
use serde_json::{Value, json};
use support::{Home, OpenAi, until};

/// Long enough for a busy machine to get as far as each case wants.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Cancel,
    Disconnect,
    Deadline,
}

/// How far the answer has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The provider has the request, and says nothing.
    Asked,
    /// It has said something.
    Begun,
    /// It was late, and another one was asked as well.
    Hedged,
    /// It broke off, and another one was asked to go on.
    Continuing,
}

fn health(home: &Home, name: &str) -> Value {
    let status = home.status();
    let mut providers = status["providers"].as_array().unwrap().iter();
    providers.find(|provider| provider["name"] == name).unwrap()["health"].clone()
}

/// When the provider's side saw the end. A reset is as good as an end.
fn closed(mut connection: TcpStream) -> Instant {
    let _ = connection.read_to_end(&mut Vec::new());
    Instant::now()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn gives_up(by: By, stage: Stage, streamed: bool) {
    let (first, second) = (OpenAi::new(), OpenAi::new());
    // Who closes does not come again, and is not waited for.
    let waits = match by {
        By::Disconnect => "[ipc]\nlost_request_secs = 600\n",
        By::Cancel | By::Deadline => "",
    };
    let home = Home::new(&format!(
        "{waits}[providers.first]\ntype = 'openai'\nbase_url = '{}'\n\
         [providers.second]\ntype = 'openai'\nbase_url = '{}'\n\
         [routes.plain]\ntargets = ['first/m']\n\
         [routes.hedged]\ntargets = ['first/m', 'second/m']\nhedge_after = 0.1\n\
         [routes.continued]\ntargets = ['first/m', 'second/m']\ncontinue_midstream = true\n",
        first.url(),
        second.url(),
    ));
    let _daemon = home.serve(&[]);
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let route = match stage {
        Stage::Asked | Stage::Begun => "plain",
        Stage::Hedged => "hedged",
        Stage::Continuing => "continued",
    };
    let request = AIRequest {
        stream: Some(streamed),
        ..AIRequest::new(route, vec![Message::user("hi")])
    };
    let body = serde_json::to_vec(&request).unwrap();
    let options = RequestOptions {
        deadline: (by == By::Deadline).then_some(DEADLINE),
        ..RequestOptions::default()
    };
    let asked = Instant::now();
    let mut items = client
        .stream(MessageType::CHAT, &body, &options)
        .await
        .unwrap();
    let mut connections = blocking(move || {
        let (_, _, mut connection) = first.request();
        if stage == Stage::Begun || stage == Stage::Continuing {
            OpenAi::begin(&mut connection);
            OpenAi::say(&mut connection, "A first word");
        }
        match stage {
            Stage::Asked | Stage::Begun => vec![connection],
            Stage::Hedged => vec![connection, second.request().2],
            Stage::Continuing => {
                drop(connection);
                vec![second.request().2]
            }
        }
    })
    .await;
    if streamed && matches!(stage, Stage::Begun | Stage::Continuing) {
        let item = items.next().await.unwrap().unwrap();
        assert!(item.starts_with(b"{\"type\":\"start\""), "{item:?}");
    }
    let given_up = match by {
        By::Cancel => {
            drop(items);
            Instant::now()
        }
        By::Disconnect => {
            let now = Instant::now();
            client.close().await;
            now
        }
        By::Deadline => {
            let error = loop {
                match items.next().await.unwrap() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.code(), Some(ErrorCode::DeadlineExceeded), "{error}");
            asked + DEADLINE
        }
    };
    while let Some(connection) = connections.pop() {
        let closed = blocking(move || closed(connection)).await;
        println!(
            "{by:?}, {stage:?}, streamed {streamed}: the provider's connection closed after {:?}",
            closed.saturating_duration_since(given_up)
        );
    }
    // Everything is given back, and nobody is to blame but the one that broke off.
    for name in ["first", "second"] {
        until("nothing is under way", || {
            health(&home, name)["inFlight"] == 0
        });
        let health = health(&home, name);
        let failed = u32::from(name == "first" && stage == Stage::Continuing);
        assert_eq!(
            health["failed"],
            json!(failed),
            "{by:?} {stage:?}: {health}"
        );
        let asked = health["asked"].as_u64().unwrap();
        assert_eq!(
            health["cancelled"],
            json!(asked - u64::from(failed)),
            "{health}"
        );
        assert_eq!(health["breakers"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_the_provider() {
    all_stages(By::Cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_away_reaches_the_provider() {
    all_stages(By::Disconnect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_reaches_the_provider() {
    all_stages(By::Deadline).await;
}

#[test]
fn a_client_that_is_killed_is_not_waited_for() {
    let provider = OpenAi::new();
    let home = Home::new(&format!(
        "[ipc]\nlost_request_secs = 600\n[providers.first]\ntype = 'openai'\nbase_url = '{}'\n",
        provider.url()
    ));
    let _daemon = home.serve(&[]);
    let mut client = home
        .command(&["chat", "--model", "first/m", "hi"])
        .spawn()
        .unwrap();
    let (_, _, mut connection) = provider.request();
    OpenAi::begin(&mut connection);
    OpenAi::say(&mut connection, "A first word");
    let mut word = [0; 5];
    client
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut word)
        .unwrap();
    let killed = Instant::now();
    client.kill().unwrap();
    let after = closed(connection).saturating_duration_since(killed);
    println!("killed: the provider's connection closed after {after:?}");
    client.wait().unwrap();
    until("nothing is under way", || {
        health(&home, "first")["inFlight"] == 0
    });
    let health = health(&home, "first");
    assert_eq!(health["cancelled"], 1, "{health}");
}

async fn all_stages(by: By) {
    for stage in [Stage::Asked, Stage::Begun, Stage::Hedged, Stage::Continuing] {
        gives_up(by, stage, true).await;
    }
    for stage in [Stage::Asked, Stage::Begun, Stage::Hedged] {
        gives_up(by, stage, false).await;
    }
}
