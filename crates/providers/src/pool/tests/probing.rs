//! Active probes, on paused time.

use super::*;

/// Its list of models does what the script says: `None` is a list.
#[derive(Debug)]
struct Listed {
    script: Mutex<VecDeque<Option<ErrorKind>>>,
    asked: Mutex<u32>,
    /// What chats end in.
    chats: Option<ErrorKind>,
}

impl Listed {
    fn new(
        script: impl IntoIterator<Item = Option<ErrorKind>>,
        chats: Option<ErrorKind>,
    ) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::new(0),
            chats,
        })
    }

    fn asked(&self) -> u32 {
        *self.asked.lock().unwrap()
    }
}

impl Provider for Listed {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        let finish = Ok(Event::Finish(FinishReason::Stop));
        let answer = match self.chats {
            None => Ok(ChatStream::new(Events([finish].into()))),
            Some(kind) => Err(ProviderError::new(kind, "")),
        };
        Box::pin(async { answer })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        *self.asked.lock().unwrap() += 1;
        let mut script = self.script.lock().unwrap();
        let next = match script.len() {
            1 => script[0],
            _ => script.pop_front().unwrap(),
        };
        Box::pin(async move {
            sleep(SECOND / 10).await;
            match next {
                None => Ok(Vec::new()),
                Some(kind) => Err(ProviderError::new(kind, "")),
            }
        })
    }
}

fn member(pool: &mut Pool, provider: &Arc<Listed>) -> Target {
    let account = Arc::clone(provider) as Arc<dyn Provider>;
    Target {
        member: pool.add("p", vec![account], all(), None),
        model: "m".into(),
        weight: 1,
    }
}

#[tokio::test(start_paused = true)]
async fn an_unused_provider_is_probed_and_a_busy_one_is_not() {
    let provider = Listed::new([None], None);
    let mut pool = pool();
    let target = member(&mut pool, &provider);
    let member = Arc::clone(&target.member);
    let probing = tokio::spawn(Arc::clone(&member).keep_probing(10 * SECOND));
    sleep(25 * SECOND).await;
    assert_eq!(provider.asked(), 2);
    let probe = member.status().probe.unwrap();
    assert_eq!((probe.outcome, probe.took), (Ok(()), SECOND / 10));
    assert!((4 * SECOND..5 * SECOND).contains(&probe.ago), "{probe:?}");
    assert_eq!(
        member.status().counts,
        Counts::default(),
        "it is no request"
    );
    let route = plan([target]);
    for _ in 0..50 {
        drop(pool.chat(&route, request(), None).await.unwrap());
        sleep(SECOND).await;
    }
    assert_eq!(provider.asked(), 2, "its traffic tells");
    probing.abort();
    drop(probing.await);
    sleep(60 * SECOND).await;
    assert_eq!(provider.asked(), 2, "it ends with its task");
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_lets_the_next_request_through() {
    let gone = ErrorKind::ConnectionFailed;
    let provider = Listed::new([Some(gone), None], Some(gone));
    let config = PoolConfig {
        breaker: BreakerConfig {
            open: 1000 * SECOND,
            max_open: 1000 * SECOND,
            ..BreakerConfig::default()
        },
        retries: RetryConfig {
            attempts: 1,
            ..RetryConfig::default()
        },
    };
    let mut pool = Pool::new(config);
    let target = member(&mut pool, &provider);
    let member = Arc::clone(&target.member);
    let route = plan([target]);
    for _ in 0..5 {
        pool.chat(&route, request(), None).await.unwrap_err();
    }
    assert_eq!(member.status().way.0, BreakerState::Open);
    member.probe().await;
    assert_eq!(member.status().probe.unwrap().outcome, Err(gone));
    assert_eq!(member.status().way.0, BreakerState::Open, "still");
    member.probe().await;
    assert_eq!(member.status().way.0, BreakerState::HalfOpen);
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(failed.error.kind, gone, "it was asked");
}

#[tokio::test(start_paused = true)]
async fn probes_that_do_not_reach_it_open_its_breaker_and_one_given_up_holds_nothing() {
    let provider = Listed::new([Some(ErrorKind::ConnectionFailed)], None);
    let mut pool = pool();
    let member = member(&mut pool, &provider).member;
    for _ in 0..5 {
        member.probe().await;
    }
    assert_eq!(member.status().way.0, BreakerState::Open);
    sleep(6 * SECOND).await;
    assert_eq!(member.status().way.0, BreakerState::HalfOpen);
    // A probe takes the one place there is, and gives it back when it is dropped.
    for _ in 0..3 {
        let given_up = tokio::time::timeout(SECOND / 20, member.probe()).await;
        assert!(given_up.is_err());
    }
    let now = Instant::now();
    let call = member.admit(&"m".into(), false, &Demand::default(), now);
    assert!(call.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_provider_without_a_list_tells_nothing() {
    let provider = Listed::new([Some(ErrorKind::Unsupported)], None);
    let mut pool = pool();
    let member = member(&mut pool, &provider).member;
    for _ in 0..10 {
        member.probe().await;
    }
    let status = member.status();
    assert_eq!(status.way.0, BreakerState::Closed);
    assert_eq!(status.probe.unwrap().outcome, Err(ErrorKind::Unsupported));
}
