use std::collections::VecDeque;
use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use std::time::Duration;

use super::*;
use crate::chat::{Message, ModelInfo};
use crate::embeddings::Embeddings;
use crate::event::{Event, FinishReason};
use crate::gateway::Gateway;
use crate::pool::{Answer, Caller, Pool, PoolConfig};
use crate::profile::{Feature, Features};
use crate::provider::{BoxFuture, ChatStream, EventStream, Provider};

const PRICES: &str = "[[price]]\nprovider = 'dear'\nmodels = ['m']\ninput = 1000\noutput = 1000\n\
    [[price]]\nprovider = 'cheap'\nmodels = ['m', 'alias-of-m']\ninput = 1\noutput = 1\n";

/// Ends with what it is told to.
#[derive(Clone, Debug)]
struct Says(Vec<Result<Event<'static>, ErrorKind>>);

struct Events(VecDeque<Result<Event<'static>, ErrorKind>>);

impl EventStream for Events {
    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::task::Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let event = self.0.pop_front()?;
        Some(event.map_err(|kind| ProviderError::new(kind, "")))
    }
}

impl Provider for Says {
    fn chat<'a>(
        &'a self,
        _request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(ready(Ok(ChatStream::new(Events(self.0.clone().into())))))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(ready(Ok(Vec::new())))
    }
}

/// Makes a vector, and counts so many tokens.
#[derive(Debug)]
struct Makes(Option<u64>);

impl Provider for Makes {
    fn chat<'a>(
        &'a self,
        _request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        let error = ProviderError::new(ErrorKind::Unsupported, "it makes vectors");
        Box::pin(ready(Err(error)))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn embed<'a>(
        &'a self,
        _request: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        Box::pin(ready(Ok(Embeddings {
            model: Some("alias-of-m".into()),
            vectors: vec![vec![0.5]],
            input_tokens: self.0,
        })))
    }
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Entry>>, Mutex<Vec<String>>);

impl Ledger for Kept {
    fn record(&self, entry: &Entry) {
        self.0.lock().unwrap().push(entry.clone());
    }

    fn warn(&self, warning: &str) {
        self.1.lock().unwrap().push(warning.to_owned());
    }
}

impl Kept {
    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const WHOLE: [Result<Event<'static>, ErrorKind>; 4] = [
    Ok(Event::Start {
        id: None,
        model: None,
    }),
    Ok(Event::Text("12345678")),
    Ok(Event::Usage(Usage {
        input_tokens: 100,
        output_tokens: 50,
        cached_input_tokens: 0,
        cache_write_tokens: 0,
        reasoning_tokens: 0,
    })),
    Ok(Event::Finish(FinishReason::Stop)),
];

struct Rig {
    spend: Arc<Spend>,
    kept: Arc<Kept>,
    pool: Pool,
    now: Arc<AtomicU64>,
}

impl Rig {
    fn new(budgets: Vec<Budget>) -> Self {
        let kept = Arc::new(Kept::default());
        // 2026-11-26, noon.
        let now = Arc::new(AtomicU64::new(1_795_694_400));
        let clock = Arc::clone(&now);
        let prices = PriceTable::parse(PRICES).unwrap();
        let spend = Spend::with_clock(prices, budgets, kept.clone(), move || {
            UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed))
        });
        Self {
            spend: Arc::new(spend),
            kept,
            pool: Pool::new(PoolConfig::default()),
            now,
        }
    }

    fn target(&mut self, name: &str, says: &[Result<Event<'static>, ErrorKind>]) -> Target {
        self.target_of(name, Arc::new(Says(says.to_vec())))
    }

    fn target_of(&mut self, name: &str, provider: Arc<dyn Provider>) -> Target {
        Target {
            member: self
                .pool
                .add(name, vec![provider], Features::of(Feature::ALL), None),
            model: "m".into(),
            weight: 1,
        }
    }

    /// Has a vector made of 40 bytes, which are about 10 tokens.
    async fn embed(
        &self,
        client: u32,
        plan: &Plan,
    ) -> Result<(Answer<Embeddings>, Bill), NoAnswer> {
        let request = EmbeddingRequest {
            input: vec!["12345678".into(); 5],
            ..EmbeddingRequest::default()
        };
        let gateway = Gateway::new(Arc::clone(&self.spend), None);
        let caller = Caller {
            uid: Some(client),
            ..Caller::default()
        };
        gateway
            .embed(&self.pool, plan.clone(), request, caller)
            .await
    }

    async fn ask(&self, client: u32, plan: &Plan) -> Result<(Answer, Receipt), NoAnswer> {
        let trail = Trail::default();
        let admitted = self
            .spend
            .admit(client, plan.clone(), &request(), &trail)
            .map_err(|error| *error)?;
        let answer = self
            .pool
            .chat_traced(&admitted.plan, request(), None, &trail);
        let answer = answer.await?;
        Ok(admitted.meter(answer))
    }

    fn spent(&self, at: usize) -> (u64, u64) {
        let status = &self.spend.budgets()[at];
        (status.spent.get(), status.reserved.get())
    }
}

fn request() -> ChatRequest {
    // 4 tokens for the message, 1 for its text, and 95 for the answer: 100 in all.
    ChatRequest {
        max_tokens: Some(95),
        ..ChatRequest::new("").with(Message::user("Hi"))
    }
}

fn plan(targets: impl IntoIterator<Item = Target>) -> Plan {
    Plan {
        targets: targets.into_iter().collect(),
        ..Plan::default()
    }
}

fn budget(name: &str, hard_nanos: u64) -> Budget {
    Budget {
        name: name.into(),
        period: Period::Day,
        provider: None,
        clients: Clients::All,
        soft: None,
        hard: Some(NanoUsd::new(hard_nanos)),
        refuse_unpriced: false,
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_reserved_for_then_counted_once_and_billed_before_its_end() {
    let mut rig = Rig::new(vec![budget("all", 1_000_000)]);
    let route = plan([rig.target("cheap", &WHOLE)]);
    let (mut answer, receipt) = rig.ask(1000, &route).await.unwrap();
    assert_eq!(rig.spent(0), (0, 100_000), "100 tokens at a millionth each");
    let mut events = 0;
    while let Some(event) = answer.given.next().await {
        let is_last = matches!(event.unwrap(), Event::Finish(_));
        assert_eq!(receipt.bill().is_some(), is_last);
        events += 1;
    }
    assert_eq!(events, 4);
    assert_eq!(rig.spent(0), (150_000, 0));
    let bill = receipt.bill().unwrap();
    assert_eq!(
        (bill.cost, bill.cached),
        (Some(NanoUsd::new(150_000)), false)
    );
    drop(answer);
    let entries = rig.kept.take();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].client, &*entries[0].model), (1000, "m"));
    assert!(!entries[0].estimated && !entries[0].cached);
    let spend = rig.spend.providers()["cheap"];
    assert_eq!((spend.today.requests, spend.month.cost.get()), (1, 150_000));
    // The next day begins anew, the month goes on.
    rig.now.fetch_add(86_400, Ordering::Relaxed);
    assert_eq!(rig.spent(0), (0, 0));
    let spend = rig.spend.providers()["cheap"];
    assert_eq!((spend.today.requests, spend.month.requests), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_given_up_or_breaks_off_is_estimated_and_gives_back_what_it_reserved() {
    let mut rig = Rig::new(vec![budget("all", 1_000_000)]);
    let whole = plan([rig.target("cheap", &WHOLE)]);
    let cut = [WHOLE[0], WHOLE[1], Err(ErrorKind::StreamCut)];
    let broken = plan([rig.target("dear", &cut)]);
    let (mut answer, receipt) = rig.ask(1, &whole).await.unwrap();
    answer.given.next().await.unwrap().unwrap();
    answer.given.next().await.unwrap().unwrap();
    drop(answer);
    // 5 of the request and 2 of the text.
    assert_eq!(rig.spent(0), (7_000, 0));
    assert_eq!(receipt.bill().unwrap().cost, Some(NanoUsd::new(7_000)));
    let (answer, _) = rig.ask(1, &whole).await.unwrap();
    drop(answer);
    assert_eq!(rig.spent(0), (12_000, 0), "unread: its request alone");
    let mut dear = budget("dear", 1_000_000_000);
    dear.provider = Some("dear".into());
    let (answer, _) = {
        let spend = Arc::new(Spend::new(
            PriceTable::parse(PRICES).unwrap(),
            vec![dear],
            rig.kept.clone(),
        ));
        rig.spend = spend;
        rig.ask(1, &broken).await.unwrap()
    };
    assert_eq!(
        answer.given.collect().await.unwrap_err().kind,
        ErrorKind::StreamCut
    );
    assert_eq!(rig.spent(0), (7_000_000, 0));
    assert!(rig.kept.take().iter().all(|entry| entry.estimated));
}

#[tokio::test(start_paused = true)]
async fn where_a_provider_s_budget_is_spent_the_next_one_is_asked() {
    let mut dear = budget("dear", 150_000_000);
    dear.provider = Some("dear".into());
    let mut rig = Rig::new(vec![dear, budget("all", 10_000_000_000)]);
    let (first, second) = (rig.target("dear", &WHOLE), rig.target("cheap", &WHOLE));
    let route = plan([first.clone(), second]);
    let (answer, _) = rig.ask(1, &route).await.unwrap();
    assert_eq!(&*answer.provider, "dear");
    // While the first is under way, too: its 100 tokens are reserved, and 100 more would be too many.
    let (other, _) = rig.ask(1, &route).await.unwrap();
    assert_eq!(
        other.trail.to_string(),
        "dear/m skipped: budget_spent; cheap/m answered (0 ms)"
    );
    answer.given.collect().await.unwrap();
    drop(other);
    assert_eq!(rig.spent(0), (150_000_000, 0));
    let failed = rig.ask(1, &plan([first])).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::BudgetSpent);
    assert_eq!(failed.trail.to_string(), "dear/m skipped: budget_spent");
    assert_eq!(
        failed.error.retry_after,
        Some(Duration::from_secs(12 * 3600)),
        "until midnight"
    );
    let text = failed.error.to_string();
    assert!(
        text.contains("budget `dear` of $0.15 a day has $0.15 spent"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_cheapest_is_asked_first_and_an_unknown_price_last() {
    let mut rig = Rig::new(Vec::new());
    let unknown = rig.target("unknown", &WHOLE);
    let (dear, cheap) = (rig.target("dear", &WHOLE), rig.target("cheap", &WHOLE));
    let mut route = plan([unknown, dear, cheap]);
    route.balance = Balance::Cheapest;
    let admitted = rig
        .spend
        .admit(1, route.clone(), &request(), &Trail::default())
        .unwrap();
    let order: Vec<&str> = admitted
        .plan
        .targets
        .iter()
        .map(|target| &**target.member.name())
        .collect();
    assert_eq!(order, ["cheap", "dear", "unknown"]);
    let (answer, _) = rig.ask(1, &route).await.unwrap();
    assert_eq!(&*answer.provider, "cheap");
}

#[tokio::test(start_paused = true)]
async fn only_who_answers_keeps_its_budget_reserved() {
    let at = |provider: &str| Budget {
        provider: Some(provider.into()),
        ..budget(provider, 10_000_000_000)
    };
    let mut rig = Rig::new(vec![at("dear"), at("cheap"), budget("all", 10_000_000_000)]);
    let route = plan([rig.target("cheap", &WHOLE), rig.target("dear", &WHOLE)]);
    let admitted = rig
        .spend
        .admit(1, route.clone(), &request(), &Trail::default())
        .unwrap();
    let reserved = |rig: &Rig| [0, 1, 2].map(|at| rig.spent(at).1);
    assert_eq!(reserved(&rig), [100_000_000, 100_000, 100_000_000]);
    drop(admitted);
    assert_eq!(reserved(&rig), [0; 3]);
    let (answer, _) = rig.ask(1, &route).await.unwrap();
    assert_eq!(reserved(&rig), [0, 100_000, 100_000]);
    drop(answer);
    assert_eq!(reserved(&rig), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn the_model_that_answers_tells_the_price_of_an_alias() {
    let mut rig = Rig::new(vec![budget("all", 1_000_000)]);
    let mut says = WHOLE;
    says[0] = Ok(Event::Start {
        id: None,
        model: Some("alias-of-m"),
    });
    let latest = Target {
        model: "latest".into(),
        ..rig.target("cheap", &says)
    };
    let unknown = Target {
        model: "other".into(),
        ..rig.target("cheap", &WHOLE)
    };
    for (target, cost) in [(latest, Some(150_000)), (unknown, None)] {
        let (answer, receipt) = rig.ask(1, &plan([target])).await.unwrap();
        answer.given.collect().await.unwrap();
        assert_eq!(receipt.bill().unwrap().cost.map(NanoUsd::get), cost);
    }
    let month = rig.spend.providers()["cheap"].month;
    assert_eq!((month.requests, month.unpriced), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn budgets_go_on_after_a_restart() {
    let mut rig = Rig::new(vec![budget("all", 200_000)]);
    let route = plan([rig.target("cheap", &WHOLE)]);
    let today = rig.spend.today();
    let key = |day| Key {
        day,
        client: 1,
        provider: "cheap".into(),
        model: "m".into(),
    };
    let before = Totals {
        requests: 1,
        cost: NanoUsd::new(150_000),
        ..Totals::default()
    };
    rig.spend
        .load([(key(today.before(1)), before), (key(today), before)]);
    assert_eq!(rig.spent(0), (150_000, 0));
    let month = rig.spend.providers()["cheap"].month;
    assert_eq!(month.requests, 2);
    let failed = rig.ask(1, &route).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::BudgetSpent);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_for_a_while_makes_nothing_forgotten() {
    for (period, days) in [
        (Period::Day, 1),
        (Period::Month, 40),
        (Period::Month, 20_000),
    ] {
        let mut all = budget("all", 150_000);
        all.period = period;
        let mut rig = Rig::new(vec![all]);
        let route = plan([rig.target("cheap", &WHOLE)]);
        let ask = async |rig: &Rig| {
            let (answer, _) = rig.ask(1, &route).await?;
            answer.given.collect().await.unwrap();
            Ok::<_, NoAnswer>(())
        };
        ask(&rig).await.unwrap();
        rig.now.fetch_add(days * 86_400, Ordering::Relaxed);
        assert_eq!(rig.spent(0), (0, 0));
        ask(&rig).await.unwrap();
        rig.now.fetch_sub(days * 86_400, Ordering::Relaxed);
        assert_eq!(rig.spent(0), (150_000, 0));
        let refused = ask(&rig).await.unwrap_err();
        assert_eq!(refused.error.kind, ErrorKind::BudgetSpent);
        let spend = rig.spend.providers()["cheap"];
        // One day is in the same month.
        let month = if days == 1 { 2 } else { 1 };
        assert_eq!((spend.today.requests, spend.month.requests), (1, month));
    }
}

#[tokio::test(start_paused = true)]
async fn a_soft_budget_shows_in_the_bill() {
    let mut soft = budget("soft", 1_000_000_000);
    soft.soft = Some(NanoUsd::new(150_000));
    let mut rig = Rig::new(vec![soft]);
    let route = plan([rig.target("cheap", &WHOLE)]);
    for _ in 0..2 {
        let (answer, receipt) = rig.ask(1, &route).await.unwrap();
        answer.given.collect().await.unwrap();
        let bill = receipt.bill().unwrap();
        assert_eq!(bill.warnings.len(), 1);
        assert_eq!(rig.kept.1.lock().unwrap().len(), 1, "once for the log");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_told_of_a_soft_budget_also_by_an_answer_that_is_given_up() {
    let mut soft = budget("soft", 1_000_000_000);
    soft.soft = Some(NanoUsd::new(7_000));
    let mut rig = Rig::new(vec![soft]);
    let route = plan([rig.target("cheap", &WHOLE)]);
    let (mut answer, _) = rig.ask(1, &route).await.unwrap();
    for _ in 0..2 {
        answer.given.next().await.unwrap().unwrap();
    }
    drop(answer);
    assert_eq!(rig.spent(0), (7_000, 0));
    let told = rig.kept.1.lock().unwrap().clone();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("budget `soft` is over"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_reserved_and_what_was_spent_change_places_in_one_step() {
    let mut rig = Rig::new(vec![budget("all", u64::MAX)]);
    // As many tokens as are estimated.
    let route = plan([rig.target_of("cheap", Arc::new(Makes(Some(10))))]);
    let (spend, over) = (Arc::clone(&rig.spend), Arc::new(AtomicBool::new(false)));
    let watch = || {
        let (spend, over) = (Arc::clone(&spend), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut least = 0;
            while !over.load(Ordering::Relaxed) {
                let budget = &spend.budgets()[0];
                let all = budget.spent.get() + budget.reserved.get();
                assert!(all >= least, "{all} after {least}");
                least = all;
            }
        })
    };
    let watching: Vec<_> = (0..4).map(|_| watch()).collect();
    let rounds = 5000;
    for _ in 0..rounds {
        rig.embed(1, &route).await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    for watching in watching {
        watching.join().unwrap();
    }
    assert_eq!(rig.spent(0), (rounds * 10_000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_count_that_cannot_be_is_not_believed() {
    let mut says = WHOLE;
    says[2] = Ok(Event::Usage(Usage {
        input_tokens: u64::MAX,
        output_tokens: u64::MAX,
        cached_input_tokens: u64::MAX,
        cache_write_tokens: u64::MAX,
        reasoning_tokens: u64::MAX,
    }));
    let mut rig = Rig::new(Vec::new());
    let route = plan([rig.target("dear", &says)]);
    let (answer, receipt) = rig.ask(1, &route).await.unwrap();
    answer.given.collect().await.unwrap();
    // Four billion tokens each, at a thousandth of a dollar.
    let cost = receipt.bill().unwrap().cost.unwrap();
    assert_eq!(cost.get(), 2 * u64::from(u32::MAX) * 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_another_goes_on_with_is_billed_part_by_part() {
    let mut rig = Rig::new(vec![budget("all", 10_000_000_000)]);
    let cut = [WHOLE[0], WHOLE[1], Err(ErrorKind::StreamCut)];
    let mut route = plan([rig.target("dear", &cut), rig.target("cheap", &WHOLE)]);
    route.continues = true;
    let request = ChatRequest {
        stream: true,
        ..request()
    };
    let trail = Trail::default();
    let admitted = rig.spend.admit(1, route, &request, &trail).unwrap();
    let answer = rig
        .pool
        .chat_traced(&admitted.plan, request, None, &trail)
        .await
        .unwrap();
    let (mut answer, receipt) = admitted.meter(answer);
    // Whoever may go on has to be paid, too.
    assert_eq!(rig.spent(0), (0, 100_000_000));
    while let Some(event) = answer.given.next().await {
        if matches!(event.unwrap(), Event::Continued { .. }) {
            break;
        }
    }
    // What is over is spent at once, and the rest stays reserved.
    assert_eq!(rig.spent(0), (7_000_000, 100_000_000));
    assert_eq!(receipt.bill(), None);
    answer.given.collect().await.unwrap();
    let entries = rig.kept.take();
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (&*entry.provider, &*entry.model, entry.estimated))
        .collect();
    assert_eq!(seen, [("dear", "m", true), ("cheap", "m", false)]);
    // 5 tokens of the request and 2 of the text, at a thousand times the price; 150 that were told.
    assert_eq!(
        receipt.bill().unwrap().cost,
        Some(NanoUsd::new(7_000_000 + 150_000))
    );
    assert_eq!(rig.spent(0), (7_150_000, 0));
}

#[tokio::test(start_paused = true)]
async fn vectors_are_on_the_bill_as_chats_are() {
    let mut rig = Rig::new(vec![budget("all", 150_000)]);
    let told = plan([rig.target_of("cheap", Arc::new(Makes(Some(100))))]);
    let (answer, bill) = rig.embed(1000, &told).await.unwrap();
    assert_eq!(answer.given.vectors, [[0.5]]);
    assert_eq!(
        (bill.cost, bill.cached),
        (Some(NanoUsd::new(100_000)), false)
    );
    assert_eq!(rig.spent(0), (100_000, 0), "nothing stays reserved");
    // Who does not say how many tokens it took is billed for as many as the texts probably have.
    let silent = plan([rig.target_of("cheap", Arc::new(Makes(None)))]);
    let (_, bill) = rig.embed(1001, &silent).await.unwrap();
    assert_eq!(bill.cost, Some(NanoUsd::new(10_000)));
    let entries = rig.kept.take();
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| {
            let Usage {
                input_tokens,
                output_tokens,
                ..
            } = entry.tokens;
            (entry.client, input_tokens, output_tokens, entry.estimated)
        })
        .collect();
    assert_eq!(seen, [(1000, 100, 0, false), (1001, 10, 0, true)]);
    assert_eq!(rig.spend.providers()["cheap"].today.requests, 2);
    // Reserved is what is estimated: whoever counts more leads beyond the budget once.
    rig.embed(1, &told).await.unwrap();
    let failed = rig.embed(1, &told).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::BudgetSpent);
    assert_eq!(failed.trail.to_string(), "cheap/m skipped: budget_spent");
}

#[tokio::test(start_paused = true)]
async fn vectors_go_elsewhere_where_a_budget_is_spent_and_failures_cost_nothing() {
    let mut dear = budget("dear", 1);
    dear.provider = Some("dear".into());
    let mut rig = Rig::new(vec![dear, budget("all", 1_000_000)]);
    let spent = rig.target_of("dear", Arc::new(Makes(Some(1))));
    let latest = Target {
        model: "latest".into(),
        ..rig.target_of("cheap", Arc::new(Makes(Some(1))))
    };
    let route = plan([spent, latest]);
    let (answer, bill) = rig.embed(1, &route).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "dear/m skipped: budget_spent; cheap/latest answered (0 ms)"
    );
    // The answer named a model whose price is known.
    assert_eq!(bill.cost, Some(NanoUsd::new(1000)));
    let chats_only = plan([rig.target("cheap", &WHOLE)]);
    let failed = rig.embed(1, &chats_only).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::Unsupported);
    assert_eq!(rig.spent(1), (1000, 0));
    assert_eq!(rig.kept.take().len(), 1);
}
