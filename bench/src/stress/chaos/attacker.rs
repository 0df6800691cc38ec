//! A client process that means harm, or has bad luck.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fastrand::Rng;
use lapce_ai_client::{Class, Client, ErrorCode, MessageType, Options, RequestOptions};
use lapce_ai_proto::{FIN, Kind};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::raw::{End, Raw, dial, hello, hung_up};
use super::script::{Script, pattern};
use super::server::{LONGEST, SCRIPT};
use crate::child::Parent;

/// What is done to the server by its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Attack {
    /// Processes die in the middle of requests, answers and uploads.
    KilledClients,
    /// Processes stand still there for a while, and go on.
    StoppedClients,
    /// Frames whose bytes are not what they were.
    CorruptFrames,
    /// Frames and messages longer than is allowed.
    OversizedFrames,
    /// Requests whose time is over before their answer can be there.
    ShortDeadlines,
    /// Handshakes and uploads that stop half way.
    Silence,
    /// Many long messages at once, and clients that do not read their answers.
    MemoryPressure,
    /// As many tiny messages as go.
    Flood,
}

impl Attack {
    pub(super) const ALL: [Self; 8] = [
        Self::KilledClients,
        Self::StoppedClients,
        Self::CorruptFrames,
        Self::OversizedFrames,
        Self::ShortDeadlines,
        Self::Silence,
        Self::MemoryPressure,
        Self::Flood,
    ];
}

/// What an attacker saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Connections or requests that it used.
    pub(super) tried: u64,
    /// What the server should have ended, and did not.
    pub(super) let_pass: Vec<String>,
    /// Answers that were not what was asked for.
    pub(super) wrong: Vec<String>,
}

/// How long the server has to end what it must end: its own patience, and then some for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Connections of one attack.
const CONNECTIONS: usize = 8;
/// What a flood and a pressure last.
const WHILE: Duration = Duration::from_millis(500);

/// What an attack of clients that are to be killed or stopped says when they are in the middle.
pub(super) const ARMED: &str = "armed";

/// The child: `<attack as JSON> <seed>`, any number of times. An attack of clients that are to be killed does not end.
pub(crate) fn attack(parent: Parent, socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut voice = parent.voice()?;
    parent.serve(|request| {
        let Some((attack, seed)) = request.split_once(' ') else {
            bail!("an unknown request: {request}");
        };
        let mut random = Rng::with_seed(seed.parse()?);
        let mut seen = Seen::default();
        // Whatever fails because the server was killed meanwhile is no finding.
        let _ended = match serde_json::from_str(attack)? {
            Attack::KilledClients => runtime.block_on(async {
                let _held = busy_clients(socket, &mut random).await;
                voice.say(ARMED)?;
                std::future::pending().await
            }),
            Attack::StoppedClients => runtime.block_on(async {
                let mut held = busy_clients(socket, &mut random).await?;
                seen.tried += CONNECTIONS as u64;
                voice.say(ARMED)?;
                // Stopped somewhere in here, they take up what has come meanwhile.
                tokio::time::sleep(WHILE).await;
                held.shutdown().await;
                // Their connections are closed by tasks of their own.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(())
            }),
            Attack::CorruptFrames => corrupt(socket, &mut random, &mut seen),
            Attack::OversizedFrames => oversized(socket, &mut random, &mut seen),
            Attack::Silence => silence(socket, &mut seen),
            Attack::ShortDeadlines => {
                runtime.block_on(short_deadlines(socket, &mut random, &mut seen))
            }
            Attack::MemoryPressure => runtime.block_on(pressure(socket, &mut random, &mut seen)),
            Attack::Flood => runtime.block_on(flood(socket, &mut random, &mut seen)),
        };
        Ok(serde_json::to_string(&seen)?)
    })
}

fn options(socket: &Path) -> Options {
    let mut options = Options::new(socket);
    options.crc = true;
    "chaos".clone_into(&mut options.name);
    options
}

fn script(random: &mut Rng) -> Script {
    Script {
        nonce: random.u64(..),
        items: 200,
        length: random.u32(1..8 << 10),
        pause: Duration::from_millis(5),
    }
}

/// Clients in the middle of answers and of uploads.
async fn busy_clients(socket: &Path, random: &mut Rng) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = Client::connect(options(socket)).await?;
        let (script, body) = (script(random), pattern(random.u64(..), 600 << 10));
        let of_streams = client.clone();
        tasks.spawn(async move {
            let options = RequestOptions::default();
            if let Ok(mut stream) = of_streams.stream(SCRIPT, script.encode(), &options).await {
                while let Some(Ok(_)) = stream.next().await {}
            }
        });
        tasks
            .spawn(async move { while client.call(MessageType::ECHO, &body[..]).await.is_ok() {} });
    }
    // So that they are in the middle.
    tokio::time::sleep(Duration::from_millis(random.u64(1..30))).await;
    Ok(tasks)
}

/// An echo as a frame, with a right CRC.
fn echo(raw: &Raw, random: &mut Rng, id: u64) -> Vec<u8> {
    let body = pattern(random.u64(..), random.usize(1..2000));
    raw.codec
        .encode(Kind::Open, FIN, MessageType::ECHO.0, id, &body)
}

fn corrupt(socket: &Path, random: &mut Rng, seen: &mut Seen) -> Result<()> {
    for _ in 0..CONNECTIONS {
        let shared_memory = random.bool();
        let mut raw = Raw::connect(socket, shared_memory)?;
        seen.tried += 1;
        let good = echo(&raw, random, 1);
        let what = random.u32(0..6);
        let must_end = match what {
            // A bit. Over the socket a length that grew is no fault until so many bytes have come.
            0 | 1 => {
                let mut frame = good;
                let at = loop {
                    let at = random.usize(0..frame.len());
                    if shared_memory || !(8..12).contains(&at) {
                        break at;
                    }
                };
                frame[at] ^= 1 << random.u32(0..8);
                raw.send(&frame)
            }
            2 => {
                let len = random.usize(24..4096);
                raw.send(&pattern(random.u64(..), len))
            }
            3 => raw.send(&[0; 24]),
            // An id again.
            4 => raw.send(&good) && raw.send(&good),
            // The positions of the rings themselves. Not each word that may be there is a fault.
            _ => {
                if let Some(mapping) = raw.mapping() {
                    mapping.write(
                        0x200 + 8 * random.usize(0..128),
                        &random.u64(..).to_le_bytes(),
                    );
                }
                raw.send(&good);
                raw.end(Duration::from_millis(20));
                false
            }
        };
        if must_end && raw.end(LIMIT) == End::Alive {
            let carrier = if shared_memory {
                "a ring"
            } else {
                "the socket"
            };
            seen.let_pass
                .push(format!("corrupt frame of kind {what} over {carrier}"));
        }
    }
    Ok(())
}

fn oversized(socket: &Path, random: &mut Rng, seen: &mut Seen) -> Result<()> {
    for _ in 0..CONNECTIONS {
        let mut raw = Raw::connect(socket, random.bool())?;
        seen.tried += 1;
        let most = raw.welcome.limits.max_frame_payload as usize;
        if random.bool() {
            let body = vec![7; most + 1 + random.usize(0..most)];
            let frame = raw
                .codec
                .encode(Kind::Open, FIN, MessageType::ECHO.0, 1, &body);
            if raw.send(&frame) && raw.end(LIMIT) == End::Alive {
                let over = body.len() - most;
                seen.let_pass.push(format!("a frame {over} bytes too long"));
            }
        } else {
            let total = LONGEST + 1 + random.u64(0..1 << 40);
            if raw.begin(MessageType::ECHO.0, 1, total) && raw.error_of(1, LIMIT) == End::Alive {
                seen.let_pass.push(format!("a message of {total} bytes"));
            }
        }
    }
    Ok(())
}

fn silence(socket: &Path, seen: &mut Seen) -> Result<()> {
    let mut half = Vec::new();
    let mut begun = Vec::new();
    for at in 0..CONNECTIONS {
        use std::io::Write;
        let mut socket_only = dial(socket)?;
        socket_only.write_all(&hello(true)[..at * 3])?;
        half.push(socket_only);
        let mut raw = Raw::connect(socket, at.is_multiple_of(2))?;
        // Where the budget is spent they wait in line, which takes no memory: then it is not they who are silent.
        if raw.begin(MessageType::ECHO.0, 1, 100 << 10) {
            begun.push(raw);
        }
        seen.tried += 2;
    }
    for socket in half {
        if !hung_up(socket, LIMIT)? {
            seen.let_pass.push("half a HELLO".to_owned());
        }
    }
    for mut raw in begun {
        if raw.error_of(1, LIMIT) == End::Alive {
            seen.let_pass
                .push("a request of which nothing comes".to_owned());
        }
    }
    Ok(())
}

async fn short_deadlines(socket: &Path, random: &mut Rng, seen: &mut Seen) -> Result<()> {
    let client = Client::connect(options(socket)).await?;
    let mut requests = JoinSet::new();
    for _ in 0..32 {
        let (client, script) = (client.clone(), script(random));
        let options = RequestOptions::with_deadline(Duration::from_millis(random.u64(1..30)));
        requests.spawn(async move {
            let began = Instant::now();
            let mut number = 0;
            let ended: Result<(), String> = match client
                .stream(SCRIPT, script.encode(), &options)
                .await
            {
                Ok(mut stream) => loop {
                    match stream.next().await {
                        Some(Ok(item)) => {
                            if let Err(why) = script.check(number, &item) {
                                break Err(why);
                            }
                            number += 1;
                        }
                        Some(Err(_)) => break Ok(()),
                        None => break Err("an answer of a second came in milliseconds".to_owned()),
                    }
                },
                Err(_) => Ok(()),
            };
            (ended, began.elapsed())
        });
    }
    while let Some(ended) = requests.join_next().await {
        let (ended, took) = ended?;
        seen.tried += 1;
        seen.wrong.extend(ended.err());
        if took > LIMIT {
            seen.let_pass.push(format!("a deadline: {took:?}"));
        }
    }
    Ok(())
}

async fn pressure(socket: &Path, random: &mut Rng, seen: &mut Seen) -> Result<()> {
    // These ask for much and read nothing; they are dropped at the end.
    let mut deaf = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut raw = Raw::connect(socket, random.bool())?;
        let script = Script {
            items: 1000,
            pause: Duration::ZERO,
            ..script(random)
        };
        let frame = raw
            .codec
            .encode(Kind::Open, FIN, SCRIPT.0, 1, &script.encode());
        raw.send(&frame);
        deaf.push(raw);
    }
    let until = Instant::now() + WHILE;
    let mut places = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = Client::connect(options(socket)).await?;
        for _ in 0..4 {
            let body = Arc::new(pattern(
                random.u64(..),
                random.usize(64 << 10..LONGEST as usize),
            ));
            let client = client.clone();
            places.spawn(echoes(client, body, until, Class::Bulk));
        }
    }
    gather(places, seen).await
}

async fn flood(socket: &Path, random: &mut Rng, seen: &mut Seen) -> Result<()> {
    let until = Instant::now() + WHILE;
    let mut places = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = Client::connect(options(socket)).await?;
        for _ in 0..32 {
            let body = Arc::new(pattern(random.u64(..), random.usize(0..16)));
            // All of them claim to be urgent.
            places.spawn(echoes(client.clone(), body, until, Class::Interactive));
        }
    }
    gather(places, seen).await
}

/// How many there were, and a wrong answer.
async fn echoes(
    client: Client,
    body: Arc<Vec<u8>>,
    until: Instant,
    class: Class,
) -> (u64, Option<String>) {
    let options = RequestOptions {
        class,
        deadline: Some(Duration::from_secs(5)),
        repeatable: true,
    };
    let mut count = 0;
    while Instant::now() < until {
        match client
            .call_with(MessageType::ECHO, &body[..], &options)
            .await
        {
            Ok(answer) if answer == *body => count += 1,
            Ok(answer) => {
                let (len, other) = (body.len(), answer.len());
                return (
                    count,
                    Some(format!("an echo of {len} bytes came as {other} others")),
                );
            }
            // No room just now.
            Err(error) if error.code() == Some(ErrorCode::Overloaded) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(_) => break,
        }
    }
    (count, None)
}

async fn gather(mut places: JoinSet<(u64, Option<String>)>, seen: &mut Seen) -> Result<()> {
    while let Some(place) = places.join_next().await {
        let (count, wrong) = place?;
        seen.tried += count;
        seen.wrong.extend(wrong);
    }
    Ok(())
}
