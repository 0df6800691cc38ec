//! Watching an answer: which tokens it took, and what that cost.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use super::{Admitted, Entry, Hold, NanoUsd, Price, Spend, estimate};
use crate::embeddings::Embeddings;
use crate::error::ProviderError;
use crate::event::{Event, Usage};
use crate::pool::{Answer, NoAnswer};
use crate::provider::{ChatStream, EventStream};

/// What an answer cost, and what there is to say about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bill {
    /// What it cost; `None`: the model's price is not known.
    pub cost: Option<NanoUsd>,
    /// Whether it came from the cache, or from a request under way that was the same.
    pub cached: bool,
    /// Soft budgets that are exceeded.
    pub warnings: Vec<String>,
    /// Those of the warnings that are new in their day or month, for the log.
    pub new_warnings: Vec<String>,
}

/// The bill of an answer, which is written when the answer is over: just before its last event is given out.
#[derive(Clone, Debug, Default)]
pub struct Receipt(Arc<Mutex<Option<Bill>>>);

impl Receipt {
    /// A bill that is written already.
    pub(crate) fn written(bill: Bill) -> Self {
        Self(Arc::new(Mutex::new(Some(bill))))
    }

    /// The bill; `None` while the answer goes on.
    pub fn bill(&self) -> Option<Bill> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn write(&self, bill: Bill) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bill);
    }
}

impl Admitted {
    /// Nobody answered: says who was not even asked.
    pub fn failed(self, mut failed: NoAnswer) -> NoAnswer {
        failed.trail.preceded_by(self.skipped);
        failed
    }

    /// Watches the answer. What it may cost where it comes from stays reserved until it is over.
    pub fn meter(mut self, answer: Answer) -> (Answer, Receipt) {
        let Answer {
            given,
            provider,
            model,
            mut trail,
        } = answer;
        trail.preceded_by(self.skipped);
        self.hold
            .narrow(self.client, &provider, &model, &self.estimate);
        let receipt = Receipt::default();
        let meter = Meter {
            hold: Some(self.hold),
            client: self.client,
            provider: Arc::clone(&provider),
            model: Arc::clone(&model),
            answers: None,
            input_estimate: self.estimate.input_tokens,
            usage: None,
            bytes: 0,
            receipt: receipt.clone(),
        };
        let given = ChatStream::new(Metered {
            inner: given,
            meter,
        });
        let answer = Answer {
            given,
            provider,
            model,
            trail,
        };
        (answer, receipt)
    }

    /// Counts vectors, which are whole when they come.
    pub fn settle(self, mut answer: Answer<Embeddings>) -> (Answer<Embeddings>, Bill) {
        answer.trail.preceded_by(self.skipped);
        let given = &answer.given;
        let tokens = given.input_tokens.map_or(self.estimate, |told| {
            believable(Usage {
                input_tokens: told,
                ..Usage::default()
            })
        });
        let spend = &self.hold.spend;
        let price = price_of(
            spend,
            &answer.provider,
            &answer.model,
            given.model.as_deref(),
        );
        let entry = Entry {
            at: (spend.clock)(),
            client: self.client,
            provider: Arc::clone(&answer.provider),
            model: Arc::clone(&answer.model),
            tokens,
            cost: price.map(|price| price.cost(&tokens)),
            estimated: given.input_tokens.is_none(),
            cached: false,
        };
        let bill = close(self.hold, &entry);
        (answer, bill)
    }
}

struct Metered {
    inner: ChatStream,
    meter: Meter,
}

impl EventStream for Metered {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_ready(cx)
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let Self { inner, meter } = self;
        let event = inner.take();
        match &event {
            Some(Ok(event)) => meter.saw(event),
            Some(Err(_)) | None => meter.settle(),
        }
        event
    }
}

/// One answer's tokens. Settled once, at its end or when it is dropped.
struct Meter {
    hold: Option<Hold>,
    client: u32,
    provider: Arc<str>,
    model: Arc<str>,
    /// The model that says it answers.
    answers: Option<Box<str>>,
    input_estimate: u64,
    usage: Option<Usage>,
    /// What was read of the answer, for when nobody tells its tokens.
    bytes: u64,
    receipt: Receipt,
}

impl Meter {
    fn saw(&mut self, event: &Event<'_>) {
        match event {
            Event::Start { model, .. } => self.answers = model.map(Into::into),
            Event::Text(text) | Event::RedactedReasoning(text) => self.bytes += text.len() as u64,
            Event::Reasoning { text, .. } => self.bytes += text.len() as u64,
            Event::ToolCall(delta) => self.bytes += delta.arguments.len() as u64,
            Event::Citation(_) => {}
            Event::Usage(usage) => self.usage = Some(*usage),
            Event::Finish(_) => self.settle(),
        }
    }

    fn settle(&mut self) {
        let Some(hold) = self.hold.take() else {
            return;
        };
        let spend = Arc::clone(&hold.spend);
        let tokens = self.usage.map_or_else(
            || Usage {
                input_tokens: self.input_estimate,
                output_tokens: estimate::tokens(self.bytes),
                ..Usage::default()
            },
            believable,
        );
        let price = price_of(&spend, &self.provider, &self.model, self.answers.as_deref());
        let entry = Entry {
            at: (spend.clock)(),
            client: self.client,
            provider: Arc::clone(&self.provider),
            model: Arc::clone(&self.model),
            tokens,
            cost: price.map(|price| price.cost(&tokens)),
            estimated: self.usage.is_none(),
            cached: false,
        };
        self.receipt.write(close(hold, &entry));
    }
}

/// Who asks for "the latest" learns from the answer which one that is: `answers` is the model that it names.
fn price_of<'a>(
    spend: &'a Spend,
    provider: &str,
    model: &str,
    answers: Option<&str>,
) -> Option<&'a Price> {
    let of = |model: &str| spend.prices.price(provider, model);
    of(model).or_else(|| of(answers?))
}

/// Gives back what was reserved for an answer that is over, counts what it cost, and writes its bill.
fn close(hold: Hold, entry: &Entry) -> Bill {
    let spend = Arc::clone(&hold.spend);
    drop(hold);
    spend.count(entry);
    let today = entry.key().day;
    let exceeded = spend
        .lock()
        .budgets
        .exceeded(today, entry.client, &entry.provider);
    let new = exceeded.iter().filter(|exceeded| exceeded.is_new);
    Bill {
        cost: entry.cost,
        cached: false,
        new_warnings: new.map(|exceeded| exceeded.message.clone()).collect(),
        warnings: exceeded
            .into_iter()
            .map(|exceeded| exceeded.message)
            .collect(),
    }
}

/// What a provider says that it counted, where that can be: no answer has four billion tokens.
fn believable(usage: Usage) -> Usage {
    let most = |tokens: u64| tokens.min(u32::MAX.into());
    Usage {
        input_tokens: most(usage.input_tokens),
        output_tokens: most(usage.output_tokens),
        cached_input_tokens: most(usage.cached_input_tokens),
        cache_write_tokens: most(usage.cache_write_tokens),
        reasoning_tokens: most(usage.reasoning_tokens),
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle();
    }
}
