//! Answers that break off and are gone on with, on paused time.

use proptest::prelude::*;

use super::speaker::{Line, Speaker, text};
use super::*;
use crate::chat::Content;
use crate::event::{FinishReason, Usage};
use crate::provider::ChatResponse;

const CUT: Line = Line::Fails(ErrorKind::StreamCut);

/// A route over these, whose answers are gone on with.
fn continuing(pool: &mut Pool, speakers: &[(&str, &Arc<Speaker>)]) -> Plan {
    let targets = speakers.iter().map(|(name, speaker)| {
        let account = Arc::clone(speaker) as Arc<dyn Provider>;
        Target {
            member: pool.add(name, vec![account], all(), None),
            model: format!("{name}-1").into(),
            weight: 1,
        }
    });
    Plan {
        targets: targets.collect(),
        continues: true,
        ..Plan::default()
    }
}

/// The events in short, and the error.
async fn events(answer: Answer) -> (Vec<String>, Option<ErrorKind>) {
    let mut stream = answer.given;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(match event {
            Ok(Event::Start { .. }) => "start".to_owned(),
            Ok(Event::Text(text)) => text.to_owned(),
            Ok(Event::Continued {
                provider,
                model,
                id,
                text_bytes,
            }) => format!("[{provider} {model} {id:?} {text_bytes}]"),
            Ok(Event::Usage(Usage {
                input_tokens,
                output_tokens,
                ..
            })) => format!("{input_tokens}+{output_tokens}"),
            Ok(Event::Finish(reason)) => format!("{reason:?}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => return (events, Some(error.kind)),
        });
    }
    (events, None)
}

async fn whole(pool: &Pool, route: &Plan) -> (String, Option<ErrorKind>) {
    let mut stream = pool.chat(route, request(), None).await.unwrap().given;
    let mut response = ChatResponse::default();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => response.add(event),
            Err(error) => return (response.text, Some(error.kind)),
        }
    }
    (response.text, None)
}

#[tokio::test(start_paused = true)]
async fn another_goes_on_from_where_it_broke_off_and_says_so() {
    for broken in [
        CUT,
        Line::Ends,
        Line::Fails(ErrorKind::TimedOut(Phase::NextToken)),
        Line::Fails(ErrorKind::Overloaded),
        Line::Fails(ErrorKind::MalformedResponse),
    ] {
        let first = Speaker::new([vec![text("Hello, "), text("wor"), broken]]);
        let second = Speaker::new([vec![
            text("ld"),
            text("!"),
            Line::Tokens(30, 2),
            Line::Finish,
        ]]);
        let mut pool = pool();
        let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
        let asked = ChatRequest {
            max_tokens: Some(100),
            ..request()
        };
        let answer = pool.chat(&route, asked, None).await.unwrap();
        let trail = answer.trail.clone();
        let expected = [
            "start",
            "Hello, ",
            "wor",
            "[b b-1 Some(\"id\") 10]",
            "ld",
            "!",
            "30+2",
            "Stop",
        ];
        assert_eq!(
            events(answer).await,
            (expected.map(str::to_owned).into(), None)
        );
        let (texts, limit) = second.last();
        assert_eq!(texts[..2], ["Hi", "Hello, wor"]);
        assert!(
            texts[2].contains("exactly the character after its last one"),
            "{texts:?}"
        );
        assert_eq!(limit, Some(98), "two tokens or so were made");
        assert!(trail.to_string().starts_with("a/a-1 failed: "), "{trail}");
        assert!(
            trail
                .to_string()
                .ends_with("; b/b-1 continuation answered (0 ms)")
        );
        assert_eq!(in_flight(&pool), 0);
        let Counts { failed, .. } = pool.members()[0].status().counts;
        assert_eq!(failed, 1, "it is held against the one that broke off");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_are_added_up_and_each_part_has_its_own() {
    let first = Speaker::new([vec![text("one "), Line::Tokens(10, 1), CUT]]);
    let second = Speaker::new([vec![text("two"), Line::Tokens(20, 2), Line::Finish]]);
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    let trail = answer.trail.clone();
    let response = answer.given.collect().await.unwrap();
    assert_eq!(response.text, "one two");
    let usage = |input_tokens, output_tokens| Usage {
        input_tokens,
        output_tokens,
        ..Usage::default()
    };
    assert_eq!(response.usage, Some(usage(30, 3)));
    let used: Vec<_> = trail
        .attempts()
        .iter()
        .map(|attempt| attempt.usage)
        .collect();
    assert_eq!(used, [Some(usage(10, 1)), Some(usage(20, 2))]);
}

#[tokio::test(start_paused = true)]
async fn what_is_repeated_word_for_word_is_left_out() {
    let first = Speaker::new([vec![text("The quick brown fox jumps over the lazy"), CUT]]);
    let second = Speaker::new([vec![
        text("brown fox "),
        text("jumps over "),
        text("the lazy dog."),
        Line::Finish,
    ]]);
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let said = whole(&pool, &route).await;
    assert_eq!(
        said,
        (
            "The quick brown fox jumps over the lazy dog.".to_owned(),
            None
        )
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_held_back_of_a_part_that_broke_off_is_not_lost() {
    let first = Speaker::new([vec![text("The quick brown fox jumps over the lazy"), CUT]]);
    // Not clear yet whether it repeats: nobody has seen it.
    let second = Speaker::new([vec![text("brown fox jumps"), CUT]]);
    let third = Speaker::new([vec![text(" dog."), Line::Finish]]);
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second), ("c", &third)]);
    let said = whole(&pool, &route).await;
    assert_eq!(
        said,
        (
            "The quick brown fox jumps over the lazy dog.".to_owned(),
            None
        )
    );
    assert_eq!(third.last().0[1], "The quick brown fox jumps over the lazy");
    // Its end makes it clear.
    let second = Speaker::new([vec![text("jumps over the lazy"), Line::Finish]]);
    let route = continuing(&mut pool, &[("a2", &first), ("b2", &second)]);
    let said = whole(&pool, &route).await;
    assert_eq!(
        said,
        ("The quick brown fox jumps over the lazy".to_owned(), None)
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_gone_on_with_ends_in_its_error() {
    let schema = || serde_json::value::RawValue::from_string("{}".into()).unwrap();
    let with_schema = ResponseFormat::JsonSchema {
        name: "n".into(),
        schema: schema(),
        strict: None,
    };
    let cases = [
        (vec![text("a"), Line::Call, CUT], None),
        (
            vec![Line::Thought("hm", Some("proof")), text("a"), CUT],
            None,
        ),
        (vec![text("{\"a\":"), CUT], Some(with_schema)),
        (vec![text("{\"a\":"), CUT], Some(ResponseFormat::JsonObject)),
        (
            vec![text("a"), Line::Fails(ErrorKind::ContentFiltered)],
            None,
        ),
        (vec![text(&"a".repeat(1 << 20)), text("a"), CUT], None),
    ];
    for (lines, response_format) in cases {
        let first = Speaker::new([lines]);
        let second = Speaker::after(0, "b");
        let mut pool = pool();
        let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
        let asked = ChatRequest {
            response_format,
            ..request()
        };
        let answer = pool.chat(&route, asked, None).await.unwrap();
        let trail = answer.trail.clone();
        let (events, error) = events(answer).await;
        assert!(error.is_some(), "{events:?}");
        assert_eq!(second.asked(), 0, "{events:?}");
        assert!(trail.to_string().starts_with("a/a-1 failed: "), "{trail}");
        assert_eq!(in_flight(&pool), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn unsigned_thoughts_are_no_hindrance_and_stay_apart() {
    let first = Speaker::new([vec![Line::Thought("let me ", None), CUT]]);
    let second = Speaker::new([vec![
        Line::Thought("see", Some("proof")),
        text("It is."),
        Line::Finish,
    ]]);
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    let response = answer.given.collect().await.unwrap();
    assert_eq!(response.text, "It is.");
    assert_eq!(response.thoughts.len(), 2, "{:?}", response.thoughts);
    assert_eq!(
        second.last().0,
        ["Hi"],
        "nothing was said: it is asked as the first was"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_repeated_after_a_signed_thought_is_left_out_all_the_same() {
    let first = Speaker::new([vec![text("The quick brown fox jumps over the lazy"), CUT]]);
    let second = Speaker::new([vec![
        Line::Thought("where was I", Some("proof")),
        text("jumps over "),
        text("the lazy dog."),
        CUT,
    ]]);
    let third = Speaker::after(0, "?");
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second), ("c", &third)]);
    let (said, error) = whole(&pool, &route).await;
    assert_eq!(said, "The quick brown fox jumps over the lazy dog.");
    assert_eq!(error, Some(ErrorKind::StreamCut));
    assert_eq!(third.asked(), 0, "nobody goes on after a signed thought");
}

#[tokio::test(start_paused = true)]
async fn it_is_gone_on_with_three_times_and_then_ends() {
    let breaks = |word: &str| Speaker::new([vec![text(word), CUT]]);
    let (first, second) = (breaks("x"), breaks("y"));
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let said = whole(&pool, &route).await;
    assert_eq!(said, ("xyxy".to_owned(), Some(ErrorKind::StreamCut)));
    // One that is alone goes on itself.
    let alone = Speaker::new([vec![text("x"), CUT], vec![text("y"), Line::Finish]]);
    let route = continuing(&mut pool, &[("alone", &alone)]);
    assert_eq!(whole(&pool, &route).await, ("xy".to_owned(), None));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_goes_on_the_error_is_the_one_it_broke_off_with() {
    let first = Speaker::new([
        vec![text("x"), Line::Fails(ErrorKind::Overloaded)],
        vec![Line::Fails(ErrorKind::ProviderInternal)],
    ]);
    let second = Speaker::new([vec![Line::Fails(ErrorKind::Authentication)]]);
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    let trail = answer.trail.clone();
    let (_, error) = events(answer).await;
    assert_eq!(error, Some(ErrorKind::Overloaded));
    assert_eq!(
        trail.to_string(),
        "a/a-1 failed: overloaded (0 ms); b/b-1 continuation failed: authentication (0 ms); \
         a/a-1 continuation failed: provider_internal (0 ms)"
    );
    assert_eq!(in_flight(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_all_parts_and_giving_up_frees_everything() {
    let first = Speaker::new([vec![text("x"), CUT]]);
    let second = Speaker::after(9_000, "y");
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let begun = Instant::now();
    let deadline = Some(begun + 2 * SECOND);
    let answer = pool.chat(&route, request(), deadline).await.unwrap();
    let (_, error) = events(answer).await;
    assert_eq!(error, Some(ErrorKind::TimedOut(Phase::Deadline)));
    assert_eq!(begun.elapsed(), 2 * SECOND);
    assert_eq!(in_flight(&pool), 0);

    let answer = pool.chat(&route, request(), None).await.unwrap();
    let trail = answer.trail.clone();
    let reading = tokio::time::timeout(SECOND, events(answer)).await;
    assert!(reading.is_err());
    assert_eq!((first.held(), second.held(), in_flight(&pool)), (0, 0, 0));
    assert!(
        trail
            .to_string()
            .ends_with("b/b-1 continuation cancelled (1000 ms)"),
        "{trail}"
    );
    let Counts {
        cancelled, failed, ..
    } = pool.members()[1].status().counts;
    assert_eq!((cancelled, failed), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_broken_one_is_let_go_of_before_another_is_asked() {
    let first = Speaker::new([vec![text("x"), CUT]]);
    let second = Speaker::after(1_000, "y");
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let mut stream = pool.chat(&route, request(), None).await.unwrap().given;
    let reading = async { while stream.next().await.is_some() {} };
    assert!(tokio::time::timeout(SECOND / 2, reading).await.is_err());
    assert_eq!((first.held(), second.held(), in_flight(&pool)), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn going_on_waits_where_nobody_else_has_room() {
    let first = Speaker::new([
        vec![text("x"), CUT],
        vec![Line::Fails(ErrorKind::ProviderInternal)],
    ]);
    let second = Speaker::after(0, "y");
    let mut pool = pool();
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    route.targets[1].member.limit(Limits {
        max_in_flight: Some(1),
        ..Limits::default()
    });
    let only = plan([route.targets[1].clone()]);
    let held = pool.chat(&only, request(), None).await.unwrap();
    let answer = pool.chat(&route, request(), None).await.unwrap();
    let trail = answer.trail.clone();
    let ((said, error), ()) = tokio::join!(events(answer), async {
        sleep(2 * SECOND).await;
        assert_eq!(pool.members()[1].status().waiting.0, 1);
        drop(held);
    });
    assert_eq!(said, ["start", "x", "[b b-1 Some(\"id\") 1]", "y", "Stop"]);
    assert_eq!(error, None);
    assert_eq!(
        trail.to_string(),
        "a/a-1 failed: stream_cut (0 ms); \
         b/b-1 continuation skipped: limit_provider_in_flight (2000 ms); \
         a/a-1 continuation failed: provider_internal (0 ms); b/b-1 continuation answered (0 ms)"
    );
    let waiting = pool.members()[1].status().waiting.0;
    assert_eq!((in_flight(&pool), waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn all_parts_are_on_the_clients_bill() {
    let first = Speaker::new([vec![text("x"), Line::Tokens(100, 10), CUT]]);
    let second = Speaker::new([vec![text("y"), Line::Tokens(110, 20), Line::Finish]]);
    let mut pool = pool();
    let rate = Rate {
        requests_per_minute: None,
        tokens_per_minute: Some(1000),
    };
    pool.limit_clients(rate, Vec::new());
    let route = continuing(&mut pool, &[("a", &first), ("b", &second)]);
    let caller = Caller {
        uid: Some(1),
        ..Caller::default()
    };
    let answer = pool.chat(&route, request(), caller).await.unwrap();
    let (_, error) = events(answer).await;
    assert_eq!(error, None);
    // Of 1,000 there are 760 left, 5 of which the question itself needs.
    let asking = |most| ChatRequest {
        max_tokens: Some(most),
        ..request()
    };
    let failed = pool.chat(&route, asking(756), caller).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::RateLimited);
    assert!(pool.chat(&route, asking(755), caller).await.is_ok());
}

/// A text in which no stretch comes twice.
fn words(count: usize) -> String {
    (0..count).map(|at| format!("word{at}, ")).collect()
}

/// Knows a text, and goes on with it from where it is told that it stands.
#[derive(Debug)]
struct Reciter {
    whole: String,
    /// How much of what is left it says before it breaks off, from 0 to 1; none: all of it.
    part: Option<f64>,
    /// So many bytes of what was said are said again.
    repeated: usize,
    /// The size of its pieces.
    size: usize,
}

impl Provider for Reciter {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        let said = request.messages.get(1).map(|message| &message.content[0]);
        let from = match said {
            Some(Content::Text(said)) => {
                assert!(self.whole.starts_with(said), "{said}");
                said.len()
            }
            _ => 0,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let part = |part| ((self.whole.len() - from) as f64 * part) as usize;
        let to = from + self.part.map_or(self.whole.len() - from, part);
        // What is too short to be believed would stand twice, as documented.
        let repeated = if self.repeated < 24 || from < 24 {
            0
        } else {
            self.repeated.min(from)
        };
        let spoken = self.whole.as_bytes()[from - repeated..to].chunks(self.size);
        let pieces = spoken.map(|piece| text(std::str::from_utf8(piece).unwrap()));
        let end = [self.part.map_or(Line::Finish, |_| CUT)];
        let speaker = Speaker::new([pieces.chain(end).collect()]);
        Box::pin(async move { speaker.chat(request).await })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However it breaks off and however much is repeated, each byte comes once, in order.
    #[test]
    fn nothing_is_doubled_and_nothing_lost(
        count in 1usize..60,
        cuts in proptest::collection::vec((0.0..1.0f64, 0usize..200, 1usize..9), 0..4),
        last in (0usize..200, 1usize..9),
    ) {
        let whole = words(count);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let said = runtime.block_on(async {
            let mut pool = pool();
            let cuts = cuts.into_iter().map(|(part, repeated, size)| (Some(part), repeated, size));
            let targets = cuts.chain([(None, last.0, last.1)]).enumerate().map(|(at, (part, repeated, size))| {
                let reciter = Reciter { whole: whole.clone(), part, repeated, size };
                Target {
                    member: pool.add(&format!("p{at}"), vec![Arc::new(reciter)], all(), None),
                    model: "m".into(),
                    weight: 1,
                }
            });
            let route = Plan {
                targets: targets.collect(),
                continues: true,
                ..Plan::default()
            };
            let answer = pool.chat(&route, request(), None).await.unwrap();
            let response = answer.given.collect().await.unwrap();
            assert_eq!(response.finish, Some(FinishReason::Stop));
            assert_eq!(in_flight(&pool), 0);
            response.text
        });
        prop_assert_eq!(said, whole);
    }
}
