use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;
use crate::chat::{Message, Tool};
use crate::event::{FinishReason, Usage};

const SECOND: Duration = Duration::from_secs(1);

/// An answer whose events are sent by the test.
struct Sent {
    from: mpsc::UnboundedReceiver<Vec<u8>>,
    ready: VecDeque<String>,
    lent: String,
    over: bool,
    alive: Arc<AtomicUsize>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl EventStream for Sent {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.over {
            return Poll::Ready(());
        }
        match std::task::ready!(self.from.poll_recv(cx)) {
            Some(text) => self.ready.push_back(String::from_utf8(text).unwrap()),
            None => self.over = true,
        }
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        self.lent = self.ready.pop_front()?;
        Some(match self.lent.as_str() {
            "FINISH" => Ok(Event::Finish(FinishReason::Stop)),
            "FILTER" => Ok(Event::Finish(FinishReason::ContentFilter)),
            "GOES ON" => Ok(Event::Continued {
                provider: "another",
                model: "m",
                id: None,
                text_bytes: 1,
            }),
            "CUT" => Err(ProviderError::new(ErrorKind::StreamCut, "cut")),
            text => Ok(Event::Text(text)),
        })
    }
}

/// A provider, and what it was asked.
#[derive(Clone)]
struct Rig {
    cache: Arc<AnswerCache>,
    asked: Arc<AtomicUsize>,
    alive: Arc<AtomicUsize>,
}

/// Where the test sends the answer to. Dropping it ends the answer.
type To = mpsc::UnboundedSender<Vec<u8>>;

impl Rig {
    fn new(config: CacheConfig) -> Self {
        Self {
            cache: Arc::new(AnswerCache::new(config)),
            asked: Arc::default(),
            alive: Arc::default(),
        }
    }

    /// Asks, with an answer that begins after `after` and gets its events from the sender.
    fn ask(
        &self,
        key: u8,
        after: Duration,
        deadline: Option<Instant>,
    ) -> (
        impl Future<Output = Result<(Answer, Receipt), NoAnswer>> + Send + 'static,
        To,
    ) {
        let (to, from) = mpsc::unbounded_channel();
        let (asked, alive) = (Arc::clone(&self.asked), Arc::clone(&self.alive));
        let open = move || -> Opening {
            asked.fetch_add(1, Ordering::SeqCst);
            alive.fetch_add(1, Ordering::SeqCst);
            let stream = Sent {
                from,
                ready: VecDeque::new(),
                lent: String::new(),
                over: false,
                alive,
            };
            Box::pin(async move {
                sleep(after).await;
                let answer = Answer {
                    given: ChatStream::new(stream),
                    provider: "p".into(),
                    model: "m".into(),
                    trail: Trail::default(),
                };
                Ok((answer, Receipt::default()))
            })
        };
        let cache = Arc::clone(&self.cache);
        let chat = async move {
            cache
                .chat(CacheKey::numbered(key), deadline, &Trail::default(), open)
                .await
        };
        (chat, to)
    }

    fn counts(&self) -> (usize, usize) {
        (
            self.asked.load(Ordering::SeqCst),
            self.alive.load(Ordering::SeqCst),
        )
    }
}

fn say(to: &To, texts: &[&str]) {
    for text in texts {
        // Whoever has gone hears nothing.
        let _ = to.send(text.as_bytes().to_vec());
    }
}

async fn read(mut answer: Answer) -> Result<String, ErrorKind> {
    let mut text = String::new();
    while let Some(event) = answer.given.next().await {
        match event {
            Ok(Event::Text(more)) => text.push_str(more),
            Ok(_) => text.push('.'),
            Err(error) => return Err(error.kind),
        }
    }
    Ok(text)
}

fn is_cached(receipt: &Receipt) -> bool {
    receipt.bill().is_some_and(|bill| bill.cached)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_until_it_is_too_old() {
    let rig = Rig::new(CacheConfig {
        max_age: 10 * SECOND,
        ..CacheConfig::default()
    });
    let ask = async |key| {
        let (chat, to) = rig.ask(key, Duration::ZERO, None);
        say(&to, &["a", "b", "FINISH"]);
        drop(to);
        let (answer, receipt) = chat.await.unwrap();
        (is_cached(&receipt), read(answer).await.unwrap())
    };
    assert_eq!(ask(1).await, (false, "ab.".to_owned()));
    sleep(9 * SECOND).await;
    assert_eq!(ask(1).await, (true, "ab.".to_owned()));
    assert!(!ask(2).await.0, "another request");
    sleep(SECOND).await;
    assert_eq!(ask(1).await, (false, "ab.".to_owned()));
    assert_eq!(rig.counts(), (3, 0));
    let status = rig.cache.status();
    assert_eq!(
        (status.hits, status.misses, status.joined, status.under_way),
        (1, 3, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_the_same_meanwhile_read_one_answer_from_its_start() {
    let rig = Rig::new(CacheConfig::default());
    let (first, to) = rig.ask(1, SECOND, None);
    let first = tokio::spawn(async move {
        let (answer, receipt) = first.await.unwrap();
        (is_cached(&receipt), read(answer).await)
    });
    let mut followers = Vec::new();
    for wait in [0, 500, 1500, 2500] {
        let (chat, _to) = rig.ask(1, SECOND, None);
        followers.push(tokio::spawn(async move {
            sleep(Duration::from_millis(wait)).await;
            let (answer, receipt) = chat.await.unwrap();
            (is_cached(&receipt), read(answer).await)
        }));
    }
    sleep(2 * SECOND).await;
    say(&to, &["one ", "two "]);
    sleep(SECOND).await;
    say(&to, &["three", "FINISH"]);
    drop(to);
    let expected = "one two three.".to_owned();
    assert_eq!(first.await.unwrap(), (false, Ok(expected.clone())));
    for follower in followers {
        assert_eq!(follower.await.unwrap(), (true, Ok(expected.clone())));
    }
    assert_eq!(rig.counts(), (1, 0));
    assert_eq!(rig.cache.status().joined, 4);
}

#[tokio::test(start_paused = true)]
async fn who_asked_first_may_go_and_the_call_goes_on_for_the_others() {
    let rig = Rig::new(CacheConfig::default());
    // Before the answer begins.
    let (first, to) = rig.ask(1, SECOND, None);
    let first = tokio::spawn(first);
    sleep(SECOND / 2).await;
    let (second, _) = rig.ask(1, SECOND, None);
    let second = tokio::spawn(second);
    let (third, _) = rig.ask(1, SECOND, None);
    let third = tokio::spawn(third);
    sleep(SECOND / 4).await;
    first.abort();
    let (mut answer, _) = second.await.unwrap().unwrap();
    say(&to, &["a"]);
    assert_eq!(
        answer.given.next().await.unwrap().unwrap(),
        Event::Text("a")
    );
    // In the middle.
    drop(answer);
    assert_eq!(rig.counts(), (1, 1));
    let third = tokio::spawn(read(third.await.unwrap().unwrap().0));
    sleep(SECOND).await;
    say(&to, &["b", "FINISH"]);
    drop(to);
    assert_eq!(third.await.unwrap(), Ok("ab.".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn with_the_last_one_the_call_is_dropped_at_once() {
    let rig = Rig::new(CacheConfig::default());
    let (first, _keep) = rig.ask(1, SECOND, None);
    let (second, _) = rig.ask(1, SECOND, None);
    let (first, second) = (tokio::spawn(first), tokio::spawn(second));
    sleep(2 * SECOND).await;
    let (first, second) = (
        first.await.unwrap().unwrap(),
        second.await.unwrap().unwrap(),
    );
    assert_eq!(rig.counts(), (1, 1));
    drop(first);
    assert_eq!(rig.counts(), (1, 1));
    drop(second);
    assert_eq!(rig.counts(), (1, 0));
    assert_eq!(rig.cache.status().under_way, 0);
    // Before it began, too.
    let (chat, _keep) = rig.ask(1, SECOND, None);
    assert!(tokio::time::timeout(SECOND / 2, chat).await.is_err());
    assert_eq!(rig.counts(), (2, 0));
    assert_eq!(rig.cache.status().under_way, 0);
}

#[tokio::test(start_paused = true)]
async fn each_has_its_own_deadline() {
    let rig = Rig::new(CacheConfig::default());
    let now = Instant::now();
    let (early, to) = rig.ask(1, SECOND, Some(now + SECOND / 2));
    let (middle, _) = rig.ask(1, SECOND, Some(now + 2 * SECOND));
    let (late, _) = rig.ask(1, SECOND, None);
    let early = tokio::spawn(early);
    let middle = tokio::spawn(async move { read(middle.await.unwrap().0).await });
    let late = tokio::spawn(async move { read(late.await.unwrap().0).await });
    let over = ErrorKind::TimedOut(Phase::Deadline);
    let failed = early.await.unwrap().unwrap_err();
    assert_eq!((failed.error.kind, now.elapsed()), (over, SECOND / 2));
    say(&to, &["a"]);
    assert_eq!(middle.await.unwrap(), Err(over));
    assert_eq!(now.elapsed(), 2 * SECOND);
    say(&to, &["FINISH"]);
    drop(to);
    assert_eq!(late.await.unwrap(), Ok("a.".to_owned()));
    assert_eq!(rig.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_did_not_go_well_is_told_to_all_and_not_kept() {
    for (rest, expected) in [
        (["CUT"].as_slice(), Err(ErrorKind::StreamCut)),
        (&["FILTER"], Ok("a.".into())),
        (&["GOES ON", "b", "FINISH"], Ok("a.b.".into())),
    ] {
        let rig = Rig::new(CacheConfig::default());
        let (first, to) = rig.ask(1, Duration::ZERO, None);
        let (second, _) = rig.ask(1, Duration::ZERO, None);
        let first = tokio::spawn(async move { read(first.await.unwrap().0).await });
        let second = tokio::spawn(async move { read(second.await.unwrap().0).await });
        sleep(SECOND).await;
        say(&to, &["a"]);
        say(&to, rest);
        drop(to);
        assert_eq!(first.await.unwrap(), expected);
        assert_eq!(second.await.unwrap(), expected);
        assert_eq!(rig.cache.status().answers, 0);
        let (again, to) = rig.ask(1, Duration::ZERO, None);
        say(&to, &["b", "FINISH"]);
        drop(to);
        assert_eq!(read(again.await.unwrap().0).await, Ok("b.".to_owned()));
        assert_eq!(rig.counts(), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_takes_bounded_memory_and_reaches_those_who_read_it() {
    let rig = Rig::new(CacheConfig {
        max_answer: 64 << 10,
        ..CacheConfig::default()
    });
    let (first, to) = rig.ask(1, Duration::ZERO, None);
    let (second, _) = rig.ask(1, Duration::ZERO, None);
    let (first, second) = tokio::join!(first, second);
    let (mut quick, mut slow) = (first.unwrap().0, second.unwrap().0);
    let piece = "x".repeat(1000);
    for _ in 0..1000 {
        say(&to, &[&piece]);
    }
    say(&to, &["FINISH"]);
    drop(to);
    // The quick one gets no further than the bound allows.
    let mut ahead = 0;
    while tokio::time::timeout(SECOND, quick.given.next())
        .await
        .is_ok()
    {
        ahead += 1;
    }
    assert!((60..200).contains(&ahead), "{ahead}");
    // Whoever comes now asks anew.
    let (third, late) = rig.ask(1, Duration::ZERO, None);
    say(&late, &["b", "FINISH"]);
    drop(late);
    assert_eq!(read(third.await.unwrap().0).await, Ok("b.".to_owned()));
    assert_eq!(rig.counts().0, 2);
    let reader = tokio::spawn(async move {
        let mut count = 0;
        while let Some(event) = quick.given.next().await {
            event.unwrap();
            count += 1;
        }
        count
    });
    let mut count = 0;
    while let Some(event) = slow.given.next().await {
        event.unwrap();
        count += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(count, 1001);
    assert_eq!(reader.await.unwrap() + ahead, 1001);
}

#[tokio::test(start_paused = true)]
async fn one_who_is_behind_and_goes_holds_nobody_up() {
    let rig = Rig::new(CacheConfig {
        max_answer: 8 << 10,
        ..CacheConfig::default()
    });
    let (first, to) = rig.ask(1, Duration::ZERO, None);
    let (second, _) = rig.ask(1, Duration::ZERO, None);
    let (first, second) = tokio::join!(first, second);
    let piece = "x".repeat(1000);
    for _ in 0..100 {
        say(&to, &[&piece]);
    }
    say(&to, &["FINISH"]);
    drop(to);
    let quick = tokio::spawn(read(first.unwrap().0));
    sleep(SECOND).await;
    assert!(!quick.is_finished());
    drop(second);
    assert_eq!(quick.await.unwrap().unwrap().len(), 100_001);
    assert_eq!(rig.cache.status().answers, 0, "too large to be kept");
}

#[test]
fn only_requests_that_have_one_answer_are_looked_up() {
    let plan = Plan::default();
    let plain = || ChatRequest::new("m").with(Message::user("Hi"));
    let cold = || ChatRequest {
        temperature: Some(0.0),
        ..plain()
    };
    let tool = || Tool {
        name: "t".into(),
        description: None,
        parameters: None,
        strict: None,
    };
    let with_tool = || ChatRequest {
        tools: vec![tool()],
        ..cold()
    };
    let with_result = || cold().with(Message::tool_result("1", "4"));
    let of = |config: CacheConfig, request: ChatRequest, wish| {
        AnswerCache::new(config)
            .key(1, &plan, &request, wish)
            .is_some()
    };
    let usual = CacheConfig::default();
    let all = CacheConfig {
        requests: CacheRequests::All,
        ..usual
    };
    let opt_in = CacheConfig {
        requests: CacheRequests::OptIn,
        ..usual
    };
    let tools = CacheConfig {
        tools: true,
        ..usual
    };
    for (config, request, wish, expected) in [
        (usual, plain(), None, false),
        (usual, cold(), None, true),
        (usual, cold(), Some(false), false),
        (usual, plain(), Some(true), true),
        (usual, with_tool(), None, false),
        (usual, with_tool(), Some(true), false),
        (usual, with_result(), None, false),
        (tools, with_tool(), None, true),
        (tools, with_result(), None, true),
        (all, plain(), None, true),
        (all, with_tool(), None, false),
        (opt_in, cold(), None, false),
        (opt_in, plain(), Some(true), true),
    ] {
        assert_eq!(
            of(config, request.clone(), wish),
            expected,
            "{config:?} {request:?} {wish:?}"
        );
    }
    let key = |config, client| AnswerCache::new(config).key(client, &plan, &cold(), None);
    assert_ne!(key(usual, 1), key(usual, 2), "each client has its own");
    let shared = CacheConfig {
        shared: true,
        ..usual
    };
    assert_eq!(key(shared, 1), key(shared, 2));
}

/// What is given again is what was said, event by event.
#[tokio::test(start_paused = true)]
async fn a_replay_has_every_event() {
    let mut log = log::Log::default();
    let events = [
        Event::Start {
            id: Some("1"),
            model: Some("m"),
        },
        Event::Reasoning {
            text: "hm",
            signature: Some("s"),
        },
        Event::Text("a"),
        Event::Usage(Usage::default()),
        Event::Finish(FinishReason::Stop),
    ];
    for event in events {
        log.push(event);
    }
    let (mut answer, receipt) = replay(
        Arc::new(Recording {
            provider: "p".into(),
            model: "m".into(),
            log,
        }),
        &Trail::default(),
    );
    for event in events {
        assert_eq!(answer.given.next().await.unwrap().unwrap(), event);
    }
    assert!(answer.given.next().await.is_none());
    assert_eq!(receipt.bill().unwrap().cost, Some(NanoUsd::ZERO));
}
