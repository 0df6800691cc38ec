//! Budgets: how much may be spent in a day or a month, by all, by a client, at a provider. No clock: the day is passed in.
//!
//! What a request will cost at most is reserved before it is sent, and what it did cost is counted when it is over. So a hard budget
//! is not exceeded, as far as estimates and prices are right, however many requests are under way.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::day::Day;
use super::money::NanoUsd;

/// How much may be spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its name, for errors and logs.
    pub name: String,
    /// For how long it is.
    pub period: Period,
    /// Only what is spent there; `None`: everywhere.
    pub provider: Option<String>,
    /// Whose spending counts.
    pub clients: Clients,
    /// From here on there are warnings.
    pub soft: Option<NanoUsd>,
    /// Requests that could lead beyond it are refused.
    pub hard: Option<NanoUsd>,
    /// Whether requests whose price is not known are refused, too. They count for nothing.
    pub refuse_unpriced: bool,
}

/// How long a [`Budget`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Period {
    /// A day in UTC.
    Day,
    /// A calendar month in UTC.
    #[default]
    Month,
}

/// Whose spending a [`Budget`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Clients {
    /// All together.
    #[default]
    All,
    /// Each uid by itself.
    Each,
    /// This uid.
    One(u32),
}

impl Period {
    fn start(self, day: Day) -> Day {
        match self {
            Self::Day => day,
            Self::Month => day.month(),
        }
    }

    fn end(self, day: Day) -> Day {
        match self {
            Self::Day => day.next(),
            Self::Month => day.next_month(),
        }
    }

    /// `day` or `month`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// What a budget holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    /// The budget.
    pub budget: Budget,
    /// The uid that this is about, where each has its own.
    pub client: Option<u32>,
    /// What was spent in this period.
    pub spent: NanoUsd,
    /// What requests under way may cost at most.
    pub reserved: NanoUsd,
    /// When the next period begins.
    pub until: Day,
}

/// Why a request may not be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) message: String,
    /// When the budget is new.
    pub(super) until: Day,
}

/// More than a soft budget was spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) message: String,
    /// Whether this is the first time in the period.
    pub(super) is_new: bool,
}

/// What a request under way has reserved of one budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    budget: usize,
    client: Option<u32>,
    amount: NanoUsd,
}

#[derive(Debug, Default)]
pub(super) struct Budgets {
    all: Vec<(Budget, HashMap<Option<u32>, Account>)>,
}

#[derive(Clone, Debug, Default)]
struct Account {
    /// What was spent on which day, for good: a number a day. So it does not matter what the clock says meanwhile.
    days: BTreeMap<Day, NanoUsd>,
    /// The first days of the periods of which there was a warning.
    warned: BTreeSet<Day>,
    /// What is reserved belongs to no period: it is counted when it is over.
    reserved: NanoUsd,
}

impl Account {
    /// What was spent in the period that this day is in.
    fn spent(&self, period: Period, today: Day) -> NanoUsd {
        let days = self.days.range(period.start(today)..period.end(today));
        days.fold(NanoUsd::ZERO, |sum, (_, spent)| sum + *spent)
    }
}

impl Budgets {
    pub(super) fn new(budgets: Vec<Budget>) -> Self {
        Self {
            all: budgets
                .into_iter()
                .map(|budget| (budget, HashMap::new()))
                .collect(),
        }
    }

    /// The budgets that a request of this client to this provider counts for, each with the account that is meant.
    fn of<'a>(
        &'a mut self,
        client: u32,
        provider: &'a str,
    ) -> impl Iterator<Item = (usize, Option<u32>, &'a Budget, &'a mut Account)> {
        let all = self.all.iter_mut().enumerate();
        all.filter_map(move |(at, (budget, accounts))| {
            let elsewhere = |here: &String| !here.eq_ignore_ascii_case(provider);
            if budget.provider.as_ref().is_some_and(elsewhere) {
                return None;
            }
            let whose = match budget.clients {
                Clients::All => None,
                Clients::Each => Some(client),
                Clients::One(uid) if uid == client => None,
                Clients::One(_) => return None,
            };
            let account = accounts.entry(whose).or_default();
            Some((at, whose, &*budget, account))
        })
    }

    /// Why a request that will cost at most `estimate` may not be sent; `None`: it may.
    pub(super) fn refusal(
        &mut self,
        today: Day,
        client: u32,
        provider: &str,
        estimate: Option<NanoUsd>,
    ) -> Option<Refused> {
        self.of(client, provider)
            .find_map(|(_, whose, budget, account)| {
                let until = budget.period.end(today);
                let Some(estimate) = estimate else {
                    let message = format!(
                        "{} allows only models whose price is known",
                        name(budget, whose)
                    );
                    return budget.refuse_unpriced.then_some(Refused { message, until });
                };
                let hard = budget.hard?;
                let spent = account.spent(budget.period, today);
                let left = hard.minus(spent + account.reserved);
                (estimate > left).then(|| {
                    let reserved = match account.reserved {
                        NanoUsd::ZERO => String::new(),
                        reserved => format!(" and {reserved} reserved"),
                    };
                    let message = format!(
                        "{} of {hard} a {} has {spent} spent{reserved}; this request may cost up to {estimate}",
                        name(budget, whose),
                        budget.period.name(),
                    );
                    Refused { message, until }
                })
            })
    }

    /// Reserves what a request may cost at each of the providers that may answer it: of each budget the most that it can be.
    pub(super) fn reserve<'a>(
        &'a mut self,
        client: u32,
        estimates: impl IntoIterator<Item = (&'a str, NanoUsd)>,
    ) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        for (provider, amount) in estimates {
            for (budget, client, _, account) in self.of(client, provider) {
                let at = shares
                    .iter()
                    .position(|share| share.budget == budget && share.client == client);
                let at = at.unwrap_or_else(|| {
                    shares.push(Share {
                        budget,
                        client,
                        amount: NanoUsd::ZERO,
                    });
                    shares.len() - 1
                });
                let more = amount.minus(shares[at].amount);
                shares[at].amount = shares[at].amount + more;
                account.reserved = account.reserved + more;
            }
        }
        shares
    }

    /// Gives back what was reserved.
    pub(super) fn release(&mut self, shares: &[Share]) {
        for share in shares {
            if let Some(account) = self.all[share.budget].1.get_mut(&share.client) {
                account.reserved = account.reserved.minus(share.amount);
            }
        }
    }

    /// Counts what was spent on a day.
    pub(super) fn spend(&mut self, on: Day, client: u32, provider: &str, cost: NanoUsd) {
        for (_, _, _, account) in self.of(client, provider) {
            let spent = account.days.entry(on).or_default();
            *spent = *spent + cost;
        }
    }

    /// The soft budgets of a request that are exceeded.
    pub(super) fn exceeded(&mut self, today: Day, client: u32, provider: &str) -> Vec<Exceeded> {
        let over = self
            .of(client, provider)
            .filter_map(|(_, whose, budget, account)| {
                let spent = account.spent(budget.period, today);
                let soft = budget.soft.filter(|soft| spent >= *soft)?;
                let message = format!(
                    "{} is over its soft limit of {soft} a {}: {spent} spent",
                    name(budget, whose),
                    budget.period.name(),
                );
                let is_new = account.warned.insert(budget.period.start(today));
                Some(Exceeded { message, is_new })
            });
        over.collect()
    }

    /// What each holds. Those that are for each client: one for each that has spent something.
    pub(super) fn status(&mut self, today: Day) -> Vec<BudgetStatus> {
        let mut all = Vec::new();
        for (budget, accounts) in &mut self.all {
            if budget.clients != Clients::Each {
                accounts.entry(None).or_default();
            }
            let begin = all.len();
            for (client, account) in accounts {
                all.push(BudgetStatus {
                    budget: budget.clone(),
                    client: *client,
                    spent: account.spent(budget.period, today),
                    reserved: account.reserved,
                    until: budget.period.end(today),
                });
            }
            all[begin..].sort_unstable_by_key(|status| status.client);
        }
        all
    }
}

fn name(budget: &Budget, client: Option<u32>) -> String {
    match client {
        None => format!("budget `{}`", budget.name),
        Some(uid) => format!("budget `{}` for uid {uid}", budget.name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usd(dollars: f64) -> NanoUsd {
        NanoUsd::from_dollars(dollars)
    }

    fn budget(name: &str, hard: f64) -> Budget {
        Budget {
            name: name.into(),
            period: Period::Day,
            provider: None,
            clients: Clients::All,
            soft: None,
            hard: Some(usd(hard)),
            refuse_unpriced: false,
        }
    }

    const TODAY: u32 = 20_000;

    fn may(budgets: &mut Budgets, client: u32, provider: &str, estimate: f64) -> bool {
        let today = Day::new(TODAY);
        let refused = budgets.refusal(today, client, provider, Some(usd(estimate)));
        refused.is_none()
    }

    #[test]
    fn what_is_reserved_and_what_is_spent_counts_until_the_period_ends() {
        let today = Day::new(TODAY);
        let mut budgets = Budgets::new(vec![budget("all", 10.0)]);
        assert!(may(&mut budgets, 1, "p", 10.0));
        let shares = budgets.reserve(1, [("p", usd(4.0)), ("q", usd(6.0)), ("p", usd(5.0))]);
        assert_eq!(
            budgets.status(today)[0].reserved,
            usd(6.0),
            "the most of them"
        );
        assert!(may(&mut budgets, 2, "q", 4.0));
        assert!(!may(&mut budgets, 2, "q", 4.5));
        budgets.release(&shares);
        budgets.spend(today, 1, "p", usd(1.0));
        assert!(may(&mut budgets, 2, "q", 9.0));
        let refused = budgets.refusal(today, 2, "q", Some(usd(9.5))).unwrap();
        assert_eq!(
            refused.message,
            "budget `all` of $10.00 a day has $1.00 spent; this request may cost up to $9.50"
        );
        assert_eq!(refused.until, today.next());
        let tomorrow = today.next();
        assert_eq!(
            budgets.refusal(tomorrow, 2, "q", Some(usd(9.5))),
            None,
            "a new day"
        );
        budgets.spend(today, 1, "p", usd(5.0));
        assert_eq!(
            budgets.status(tomorrow)[0].spent,
            NanoUsd::ZERO,
            "an old one"
        );
        budgets.spend(tomorrow.next(), 1, "p", usd(5.0));
        assert_eq!(
            budgets.status(tomorrow)[0].spent,
            NanoUsd::ZERO,
            "a later one"
        );
        assert_eq!(budgets.status(today)[0].spent, usd(6.0), "it is kept");
    }

    #[test]
    fn a_budget_is_for_its_provider_and_its_clients() {
        let today = Day::new(TODAY);
        let mut budgets = Budgets::new(vec![
            Budget {
                provider: Some("P".into()),
                ..budget("p", 1.0)
            },
            Budget {
                clients: Clients::Each,
                ..budget("each", 2.0)
            },
            Budget {
                clients: Clients::One(7),
                period: Period::Month,
                ..budget("seven", 0.5)
            },
        ]);
        assert!(!may(&mut budgets, 1, "p", 1.5));
        assert!(may(&mut budgets, 1, "q", 1.5));
        assert!(!may(&mut budgets, 7, "q", 1.5));
        budgets.spend(today, 1, "q", usd(1.5));
        assert!(!may(&mut budgets, 1, "q", 1.0));
        assert!(may(&mut budgets, 2, "q", 1.0), "another's");
        let names: Vec<_> = budgets.status(today).into_iter().collect();
        let shown: Vec<_> = names
            .iter()
            .map(|status| (status.budget.name.as_str(), status.client, status.spent))
            .collect();
        assert_eq!(
            shown,
            [
                ("p", None, NanoUsd::ZERO),
                ("each", Some(1), usd(1.5)),
                ("each", Some(2), NanoUsd::ZERO),
                ("each", Some(7), NanoUsd::ZERO),
                ("seven", None, NanoUsd::ZERO)
            ]
        );
    }

    #[test]
    fn an_unknown_price_passes_unless_the_budget_says_otherwise() {
        let today = Day::new(TODAY);
        let mut budgets = Budgets::new(vec![budget("all", 0.0)]);
        assert_eq!(budgets.refusal(today, 1, "p", None), None);
        let mut strict = Budgets::new(vec![Budget {
            refuse_unpriced: true,
            ..budget("all", 1.0)
        }]);
        let refused = strict.refusal(today, 1, "p", None).unwrap();
        assert!(refused.message.contains("price is known"), "{refused:?}");
        let mut soft_only = Budgets::new(vec![Budget {
            refuse_unpriced: true,
            hard: None,
            soft: Some(usd(1.0)),
            ..budget("all", 0.0)
        }]);
        assert!(soft_only.refusal(today, 1, "p", None).is_some());
        assert!(may(&mut soft_only, 1, "p", 1000.0));
    }

    #[test]
    fn a_soft_budget_warns_and_says_when_it_is_new() {
        let today = Day::new(TODAY);
        let soft = Budget {
            soft: Some(usd(1.0)),
            hard: None,
            ..budget("soft", 0.0)
        };
        let mut budgets = Budgets::new(vec![soft]);
        assert!(budgets.exceeded(today, 1, "p").is_empty());
        budgets.spend(today, 1, "p", usd(1.25));
        let first = budgets.exceeded(today, 1, "p");
        assert_eq!(
            first[0].message,
            "budget `soft` is over its soft limit of $1.00 a day: $1.25 spent"
        );
        assert!(first[0].is_new && !budgets.exceeded(today, 1, "p")[0].is_new);
        assert!(budgets.exceeded(today.next(), 1, "p").is_empty());
        budgets.spend(today.next(), 1, "p", usd(1.5));
        for (day, is_new) in [(today.next(), true), (today, false), (today.next(), false)] {
            assert_eq!(budgets.exceeded(day, 1, "p")[0].is_new, is_new);
        }
        assert!(may(&mut budgets, 1, "p", 1000.0), "it refuses nothing");
    }

    proptest! {
        /// However requests come, overlap and end: a hard budget is never exceeded while none costs more than estimated, and when all
        /// are over nothing is reserved.
        #[test]
        fn a_hard_budget_holds(steps in proptest::collection::vec((0..3u32, 0..40u64, 0..100u64, any::<bool>()), 1..80)) {
            let today = Day::new(TODAY);
            let mut budgets = Budgets::new(vec![
                Budget { hard: Some(NanoUsd::new(100)), ..budget("all", 0.0) },
                Budget { hard: Some(NanoUsd::new(60)), clients: Clients::Each, ..budget("each", 0.0) },
            ]);
            let mut running = Vec::new();
            for (client, estimate, part, ends) in steps {
                let amount = NanoUsd::new(estimate);
                if budgets.refusal(today, client, "p", Some(amount)).is_none() {
                    running.push((client, budgets.reserve(client, [("p", amount)]), estimate * part / 100));
                }
                if ends && !running.is_empty() {
                    let (client, shares, cost) = running.swap_remove(0);
                    budgets.release(&shares);
                    budgets.spend(today, client, "p", NanoUsd::new(cost));
                }
                for status in budgets.status(today) {
                    prop_assert!(status.spent + status.reserved <= status.budget.hard.unwrap());
                }
            }
            for (client, shares, cost) in running {
                budgets.release(&shares);
                budgets.spend(today, client, "p", NanoUsd::new(cost));
            }
            for status in budgets.status(today) {
                prop_assert_eq!(status.reserved, NanoUsd::ZERO);
                prop_assert!(status.spent <= status.budget.hard.unwrap());
            }
        }
    }
}
