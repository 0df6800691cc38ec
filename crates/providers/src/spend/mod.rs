//! What answers cost: prices, budgets, and the entries of the ledger.
//!
//! [`Spend::admit`] looks at a plan before anybody is asked: it leaves out the targets whose budget does not allow the request, puts the
//! cheapest first where the route says so, and reserves what the request may cost. [`Admitted::meter`] then watches the answer, and
//! when it is over counts what it did cost; vectors, which come whole, are counted at once ([`Admitted::settle`]). Where entries are kept is somebody else's business: a [`Ledger`] gets them one by one.

mod book;
mod budget;
mod day;
mod estimate;
mod meter;
mod money;
mod price;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::chat::ChatRequest;
use crate::embeddings::EmbeddingRequest;
use crate::error::{ErrorKind, ProviderError};
use crate::event::Usage;
use crate::pool::{Balance, NoAnswer, Plan, Purpose, Skip, Target, Trail};
pub use book::{Book, Entry, Key, Totals};
pub use budget::{Budget, BudgetStatus, Clients, Period};
pub use day::Day;
pub use meter::{Bill, Receipt};
pub use money::NanoUsd;
pub use price::{Price, PriceError, PriceTable};

use budget::{Budgets, Exceeded, Share};

/// Where entries are kept. It must take them at once: the answer's end waits for it.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// Takes an entry.
    fn record(&self, entry: &Entry);

    /// Takes a warning for the log: a soft budget is exceeded, for the first time in its day or month.
    fn warn(&self, warning: &str);
}

/// A ledger that keeps nothing.
impl Ledger for () {
    fn record(&self, _entry: &Entry) {}

    fn warn(&self, _warning: &str) {}
}

/// Tells the time.
type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// What answers cost, and how much they may.
pub struct Spend {
    prices: PriceTable,
    state: Mutex<State>,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
}

struct State {
    budgets: Budgets,
    /// The sums of this month and of the one before, which a clock that is set wrong and then right comes back to.
    book: Book,
    month: Day,
    month_before: Day,
}

/// What a provider's answers cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderSpend {
    /// Today, in UTC.
    pub today: Totals,
    /// This month, in UTC.
    pub month: Totals,
}

/// A request that may be sent.
#[derive(Debug)]
pub struct Admitted {
    /// Who may answer it, in the order to ask.
    pub plan: Plan,
    estimate: Usage,
    client: u32,
    hold: Hold,
}

/// What a request has reserved. Dropping it gives it back.
struct Hold {
    spend: Arc<Spend>,
    shares: Vec<Share>,
}

impl Hold {
    /// It is known now who answers: nobody else's budget has to have room.
    fn narrow(&mut self, client: u32, provider: &str, model: &str, estimate: &Usage) {
        let price = self.spend.prices.price(provider, model);
        let cost = price.map(|price| price.cost(estimate));
        let mut state = self.spend.lock();
        state.budgets.release(&self.shares);
        let estimates = cost.map(|cost| (provider, cost));
        self.shares = state.budgets.reserve(client, estimates);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.shares.is_empty() {
            self.spend.lock().budgets.release(&self.shares);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shares.fmt(f)
    }
}

impl fmt::Debug for Spend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spend")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl Spend {
    /// With these prices and budgets. Entries go to `ledger`.
    pub fn new(prices: PriceTable, budgets: Vec<Budget>, ledger: Arc<dyn Ledger>) -> Self {
        Self::with_clock(prices, budgets, ledger, SystemTime::now)
    }

    /// The same by another clock.
    pub fn with_clock(
        prices: PriceTable,
        budgets: Vec<Budget>,
        ledger: Arc<dyn Ledger>,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        let month = Day::of(clock()).month();
        Self {
            prices,
            state: Mutex::new(State {
                budgets: Budgets::new(budgets),
                book: Book::default(),
                month,
                month_before: month,
            }),
            ledger,
            clock: Box::new(clock),
        }
    }

    /// Takes over what was spent before the start, or elsewhere, on whichever day.
    pub fn load(&self, sums: impl IntoIterator<Item = (Key, Totals)>) {
        let today = self.today();
        let mut state = self.lock();
        for (key, totals) in sums {
            state.count(today, key, &totals);
        }
    }

    /// The prices.
    pub fn prices(&self) -> &PriceTable {
        &self.prices
    }

    /// Looks whether `request`, which `client` (a uid) makes, may be sent to the plan's targets, and reserves what it may cost.
    /// Those that may not be asked are added to `trail`.
    ///
    /// # Errors
    ///
    /// [`BudgetSpent`](ErrorKind::BudgetSpent), where no target may be asked.
    pub fn admit(
        self: &Arc<Self>,
        client: u32,
        plan: Plan,
        request: &ChatRequest,
        trail: &Trail,
    ) -> Result<Admitted, Box<NoAnswer>> {
        self.admit_estimated(client, plan, estimate::usage(request), trail)
    }

    /// The same for a request for vectors.
    ///
    /// # Errors
    ///
    /// [`BudgetSpent`](ErrorKind::BudgetSpent), where no target may be asked.
    pub fn admit_embedding(
        self: &Arc<Self>,
        client: u32,
        plan: Plan,
        request: &EmbeddingRequest,
        trail: &Trail,
    ) -> Result<Admitted, Box<NoAnswer>> {
        self.admit_estimated(client, plan, estimate::of_texts(request), trail)
    }

    fn admit_estimated(
        self: &Arc<Self>,
        client: u32,
        mut plan: Plan,
        estimate: Usage,
        trail: &Trail,
    ) -> Result<Admitted, Box<NoAnswer>> {
        let now = (self.clock)();
        let today = Day::of(now);
        let cost = |target: &Target| {
            let price = self.prices.price(target.member.name(), &target.model);
            price.map(|price| price.cost(&estimate))
        };
        let mut targets = Vec::with_capacity(plan.targets.len());
        let mut refused = None;
        let mut state = self.lock();
        for target in plan.targets {
            let cost = cost(&target);
            let name = target.member.name();
            match state.budgets.refusal(today, client, name, cost) {
                None => targets.push((cost, target)),
                Some(why) => {
                    trail.skipped(name, &target.model, Purpose::Answer, Skip::BudgetSpent);
                    refused.get_or_insert(why);
                }
            }
        }
        if let (Some(why), true) = (refused, targets.is_empty()) {
            drop(state);
            let mut error = ProviderError::new(ErrorKind::BudgetSpent, why.message);
            error.retry_after = why.until.start().duration_since(now).ok();
            let trail = trail.clone();
            return Err(Box::new(NoAnswer { error, trail }));
        }
        if plan.balance == Balance::Cheapest {
            // Stable: among equals the order given counts. An unknown price is the worst.
            targets
                .sort_by_key(|(cost, _)| cost.map_or((true, NanoUsd::ZERO), |cost| (false, cost)));
        }
        let estimates = targets.iter();
        let estimates =
            estimates.filter_map(|(cost, target)| Some((&**target.member.name(), (*cost)?)));
        let shares = state.budgets.reserve(client, estimates);
        drop(state);
        plan.targets = targets.into_iter().map(|(_, target)| target).collect();
        Ok(Admitted {
            plan,
            estimate,
            client,
            hold: Hold {
                spend: Arc::clone(self),
                shares,
            },
        })
    }

    /// Counts an answer that cost nothing, since it had been given before.
    pub(crate) fn cached(&self, client: u32, provider: &Arc<str>, model: &Arc<str>) {
        let entry = Entry {
            at: (self.clock)(),
            client,
            provider: Arc::clone(provider),
            model: Arc::clone(model),
            tokens: Usage::default(),
            cost: Some(NanoUsd::ZERO),
            estimated: false,
            cached: true,
        };
        self.count(&[], &entry, &[]);
    }

    /// What each provider's answers cost.
    pub fn providers(&self) -> BTreeMap<Arc<str>, ProviderSpend> {
        let today = self.today();
        let mut all: BTreeMap<Arc<str>, ProviderSpend> = BTreeMap::new();
        for (key, totals) in self.lock().book.iter() {
            if key.day.month() != today.month() {
                continue;
            }
            let spend = all.entry(Arc::clone(&key.provider)).or_default();
            spend.month.add(totals);
            if key.day == today {
                spend.today.add(totals);
            }
        }
        all
    }

    /// What each budget holds.
    pub fn budgets(&self) -> Vec<BudgetStatus> {
        let today = self.today();
        self.lock().budgets.status(today)
    }

    fn today(&self) -> Day {
        Day::of((self.clock)())
    }

    /// Counts an entry in the place of what was reserved for it, in one step: between the two there would be room for requests that
    /// lead beyond a budget. Says which soft budgets of it, and of those counted `earlier` for the same answer, are exceeded.
    fn count(&self, reserved: &[Share], entry: &Entry, earlier: &[Entry]) -> Vec<String> {
        let (mut warnings, mut new) = (Vec::new(), Vec::new());
        let mut state = self.lock();
        state.budgets.release(reserved);
        let key = entry.key();
        state.count(key.day, key, &entry.into());
        for part in earlier.iter().chain([entry]) {
            let today = Day::of(part.at);
            let exceeded = state.budgets.exceeded(today, part.client, &part.provider);
            for Exceeded { message, is_new } in exceeded {
                // A budget may be that of several parts.
                if !warnings.contains(&message) {
                    new.extend(is_new.then(|| message.clone()));
                    warnings.push(message);
                }
            }
        }
        drop(state);
        self.ledger.record(entry);
        new.iter().for_each(|warning| self.ledger.warn(warning));
        warnings
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, today: Day, key: Key, totals: &Totals) {
        let month = today.month();
        if month != self.month {
            self.month_before = std::mem::replace(&mut self.month, month);
            self.book.forget_before(self.first_day());
        }
        self.budgets
            .spend(key.day, key.client, &key.provider, totals.cost);
        if key.day >= self.first_day() {
            self.book.add(key, totals);
        }
    }

    /// Of those that are in the book.
    fn first_day(&self) -> Day {
        self.month.min(self.month_before)
    }
}

#[cfg(test)]
mod tests;
