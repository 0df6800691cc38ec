//! In which order the targets of a route are tried.

use tokio::time::Instant;

use super::Target;

/// How a route spreads its requests. Whoever comes first is asked; the others follow where it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    /// In the order given: the next one only when those before it fail.
    #[default]
    Ordered,
    /// By chance, as often as their weights say.
    Weighted,
    /// The one with the fewest requests under way.
    LeastInFlight,
    /// The one that will be quickest, by a moving average of the time to the first token that jumps to peaks, times the
    /// requests under way.
    PeakEwma,
    /// The one that costs least for the request. [`Spend::admit`](crate::Spend::admit), which knows the prices, puts the plan's
    /// targets into that order; here they are taken as they stand.
    Cheapest,
}

impl Balance {
    /// The indexes of `targets` in the order to try. `chance` gives numbers from 0 to 1.
    pub(super) fn order(
        self,
        targets: &[Target],
        now: Instant,
        chance: impl Fn() -> f64,
    ) -> Vec<usize> {
        let mut order: Vec<usize> = (0..targets.len()).collect();
        if targets.len() < 2 {
            return order;
        }
        let mut by = |cost: &dyn Fn(&Target) -> f64| {
            let costs: Vec<f64> = targets.iter().map(cost).collect();
            // Stable: among equals the order given counts.
            order.sort_by(|a, b| costs[*a].total_cmp(&costs[*b]));
        };
        match self {
            Self::Ordered | Self::Cheapest => {}
            // The smallest of exponential times is drawn as often as its rate says (Efraimidis and Spirakis, 2006).
            Self::Weighted => {
                by(&|target| -(1.0 - chance()).ln() / f64::from(target.weight.max(1)));
            }
            #[expect(clippy::cast_precision_loss, reason = "not so many are under way")]
            Self::LeastInFlight => by(&|target| target.member.counts().in_flight as f64),
            Self::PeakEwma => by(&|target| target.member.cost(now)),
        }
        order
    }
}
