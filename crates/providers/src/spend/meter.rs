//! Watching an answer: which tokens it took, and what that cost.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use super::{Admitted, Entry, Hold, NanoUsd, Spend, estimate};
use crate::embeddings::Embeddings;
use crate::error::ProviderError;
use crate::event::{Event, Usage};
use crate::pool::{Answer, Outcome, Trail};
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
    /// Watches the answer. What it may cost where it comes from stays reserved until it is over; where others may go on with it,
    /// what it may cost there.
    pub fn meter(mut self, answer: Answer) -> (Answer, Receipt) {
        let Answer {
            given,
            provider,
            model,
            trail,
        } = answer;
        if !self.plan.continues {
            self.hold
                .narrow(self.client, &provider, &model, &self.estimate);
        }
        let receipt = Receipt::default();
        let meter = Meter {
            hold: Some(self.hold),
            client: self.client,
            part: Part::new(Arc::clone(&provider), Arc::clone(&model), &trail),
            earlier: Vec::new(),
            trail: trail.clone(),
            input: self.estimate.input_tokens,
            usage: None,
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
    pub fn settle(self, answer: Answer<Embeddings>) -> (Answer<Embeddings>, Bill) {
        let given = &answer.given;
        let told = given.input_tokens.map(|tokens| Usage {
            input_tokens: tokens,
            ..Usage::default()
        });
        let entry = entry(
            &self.hold.spend,
            self.client,
            (&answer.provider, &answer.model),
            given.model.as_deref(),
            told,
            self.estimate,
        );
        let bill = close(self.hold, &entry, &[]);
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

/// One answer's tokens. A part that breaks off is counted when the next one begins, the last one once, at its end or when it is
/// dropped.
struct Meter {
    hold: Option<Hold>,
    client: u32,
    /// What is read now.
    part: Part,
    /// The parts before, which broke off, and are counted.
    earlier: Vec<Entry>,
    trail: Trail,
    /// What the part was sent, in tokens, for when nobody tells.
    input: u64,
    usage: Option<Usage>,
    receipt: Receipt,
}

/// What one target gave of an answer.
struct Part {
    provider: Arc<str>,
    model: Arc<str>,
    /// The model that says it answers.
    answers: Option<Box<str>>,
    /// Where it stands on the trail.
    at: Option<usize>,
    /// What was read of it, for when nobody tells its tokens.
    bytes: u64,
}

impl Part {
    /// The last one on the trail that has answered.
    fn new(provider: Arc<str>, model: Arc<str>, trail: &Trail) -> Self {
        let attempts = trail.attempts();
        Self {
            provider,
            model,
            answers: None,
            at: attempts
                .iter()
                .rposition(|attempt| attempt.outcome == Outcome::Answered),
            bytes: 0,
        }
    }
}

impl Meter {
    fn saw(&mut self, event: &Event<'_>) {
        let bytes = &mut self.part.bytes;
        match event {
            Event::Start { model, .. } => self.part.answers = model.map(Into::into),
            Event::Text(text) | Event::RedactedReasoning(text) => *bytes += text.len() as u64,
            Event::Reasoning { text, .. } => *bytes += text.len() as u64,
            Event::ToolCall(delta) => *bytes += delta.arguments.len() as u64,
            Event::Citation(_) => {}
            Event::Continued {
                provider, model, ..
            } => self.goes_on(provider, model),
            Event::Usage(usage) => self.usage = Some(*usage),
            Event::Finish(_) => self.settle(),
        }
    }

    /// `answers` is the model that says it goes on; the trail knows which one was asked.
    fn goes_on(&mut self, provider: &str, answers: &str) {
        let mut next = Part::new(provider.into(), answers.into(), &self.trail);
        let asked = next
            .at
            .and_then(|at| self.trail.attempts().into_iter().nth(at));
        if let Some(asked) = asked.filter(|asked| *asked.provider == *provider) {
            next.model = asked.model;
        }
        next.answers = Some(answers.into());
        let part = std::mem::replace(&mut self.part, next);
        let Some(hold) = &self.hold else {
            return;
        };
        let spend = Arc::clone(&hold.spend);
        let entry = self.entry(&spend, &part, self.told_by(&part));
        // All that is reserved stays so: the next part may cost as much. The bill at the end has the warnings.
        spend.count(&[], &entry, &[]);
        self.earlier.push(entry);
        // Whoever goes on is sent what was said, too.
        self.input += estimate::tokens(part.bytes);
    }

    fn settle(&mut self) {
        let Some(hold) = self.hold.take() else {
            return;
        };
        let told = match self.earlier.is_empty() {
            true => self.usage,
            // What the stream says is of all parts together.
            false => self.told_by(&self.part),
        };
        let entry = self.entry(&hold.spend, &self.part, told);
        self.receipt.write(close(hold, &entry, &self.earlier));
    }

    /// The tokens of a part, where it told them.
    fn told_by(&self, part: &Part) -> Option<Usage> {
        self.trail.attempts().get(part.at?)?.usage
    }

    fn entry(&self, spend: &Spend, part: &Part, told: Option<Usage>) -> Entry {
        let estimate = Usage {
            input_tokens: self.input,
            output_tokens: estimate::tokens(part.bytes),
            ..Usage::default()
        };
        let of = (&part.provider, &part.model);
        entry(
            spend,
            self.client,
            of,
            part.answers.as_deref(),
            told,
            estimate,
        )
    }
}

/// An answer, or a part of one, that is over. Who asks for "the latest" learns its price from the answer, which names the model:
/// `answers`.
fn entry(
    spend: &Spend,
    client: u32,
    (provider, model): (&Arc<str>, &Arc<str>),
    answers: Option<&str>,
    told: Option<Usage>,
    estimate: Usage,
) -> Entry {
    let tokens = told.map_or(estimate, believable);
    let price_of = |model: &str| spend.prices.price(provider, model);
    let price = price_of(model).or_else(|| price_of(answers?));
    Entry {
        at: (spend.clock)(),
        client,
        provider: Arc::clone(provider),
        model: Arc::clone(model),
        tokens,
        cost: price.map(|price| price.cost(&tokens)),
        estimated: told.is_none(),
        cached: false,
    }
}

/// Counts the last part of an answer that is over, in the place of what was reserved for all of it, and writes the bill of that and
/// the `earlier` parts, which are counted.
fn close(mut hold: Hold, last: &Entry, earlier: &[Entry]) -> Bill {
    let shares = std::mem::take(&mut hold.shares);
    let warnings = hold.spend.count(&shares, last, earlier);
    let mut parts = earlier.iter().chain([last]);
    // All of it is known, or nothing is.
    let cost = parts.try_fold(NanoUsd::ZERO, |all, part| Some(all + part.cost?));
    Bill {
        cost,
        cached: false,
        warnings,
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
