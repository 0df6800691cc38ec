//! What a token of which model costs: the table in `prices.toml`, and a file that goes before it.

use serde::Deserialize;

use super::money::NanoUsd;
use crate::event::Usage;

/// The table that is built in.
const EMBEDDED: &str = include_str!("prices.toml");
/// The most that a million tokens may cost in a table, in dollars: more is a mistake of unit.
const MOST: f64 = 1e6;

/// The prices of models.
#[derive(Clone, Debug, Default)]
pub struct PriceTable {
    rows: Vec<Row>,
    /// How many of the rows go before the others.
    first: usize,
}

/// What the tokens of a model cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    rates: Rates,
    long: Option<(u64, Rates)>,
}

/// In millionths of a dollar per million tokens, which are trillionths of a dollar per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rates {
    input: u64,
    cached_input: u64,
    cache_write: u64,
    output: u64,
    reasoning: u64,
}

#[derive(Clone, Debug)]
struct Row {
    provider: String,
    models: Vec<String>,
    price: Price,
}

/// A table that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// It is not in the form of a price table; the text says where and why.
    #[error("{0}")]
    Form(String),
    /// A row makes no sense.
    #[error("the price of {provider}/{model}: {why}")]
    Row {
        /// The row's provider.
        provider: String,
        /// Its first model.
        model: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    price: Vec<WrittenRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRow {
    provider: String,
    models: Vec<String>,
    input: f64,
    output: f64,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
    reasoning: Option<f64>,
    long: Option<WrittenLong>,
    /// For people.
    #[serde(rename = "source")]
    _source: Option<String>,
    #[serde(rename = "read")]
    _read: Option<toml::value::Datetime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLong {
    above: u64,
    input: f64,
    output: f64,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
    reasoning: Option<f64>,
}

impl PriceTable {
    /// The table that is built in.
    ///
    /// # Errors
    ///
    /// None: a test reads it.
    pub fn embedded() -> Result<Self, PriceError> {
        Self::parse(EMBEDDED)
    }

    /// Reads a table in the form of the built-in one, whose head describes it.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        let document: Document =
            toml::from_str(text).map_err(|error| PriceError::Form(error.to_string()))?;
        let rows = document.price.into_iter().map(Row::read);
        Ok(Self {
            rows: rows.collect::<Result<_, _>>()?,
            first: 0,
        })
    }

    /// The same table with the rows of `first` before its own.
    #[must_use]
    pub fn after(self, first: Self) -> Self {
        let count = first.rows.len();
        let rows = first.rows.into_iter().chain(self.rows).collect();
        Self { rows, first: count }
    }

    /// What `model` costs at `provider`; `None`: nobody knows.
    pub fn price(&self, provider: &str, model: &str) -> Option<&Price> {
        let (first, others) = self.rows.split_at(self.first);
        best(first, provider, model).or_else(|| best(others, provider, model))
    }
}

/// The row whose pattern has the most letters.
fn best<'a>(rows: &'a [Row], provider: &str, model: &str) -> Option<&'a Price> {
    let fit = |row: &Row| {
        let at_home = row.provider == "*" || row.provider.eq_ignore_ascii_case(provider);
        let patterns = row.models.iter().filter(|_| at_home);
        patterns
            .filter(|pattern| fits(pattern, model))
            .map(|pattern| (!pattern.contains('*'), pattern.len()))
            .max()
    };
    // The first of equals.
    let mut found: Option<((bool, usize), &Price)> = None;
    for row in rows {
        if let Some(letters) = fit(row)
            && found.is_none_or(|(most, _)| letters > most)
        {
            found = Some((letters, &row.price));
        }
    }
    found.map(|(_, price)| price)
}

/// Whether `pattern`, in which a `*` stands for any text, is `text`.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| text.strip_prefix(head)) else {
        return false;
    };
    let Some(tail) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(tail)
}

impl Row {
    fn read(row: WrittenRow) -> Result<Self, PriceError> {
        let wrong = |why: String| PriceError::Row {
            provider: row.provider.clone(),
            model: row.models.first().cloned().unwrap_or_default(),
            why,
        };
        if row.models.is_empty() {
            return Err(wrong("models is empty".into()));
        }
        let rates = Rates::read(
            row.input,
            row.cached_input,
            row.cache_write,
            row.output,
            row.reasoning,
        )
        .map_err(wrong)?;
        let long = row.long.map(|long| {
            let rates = Rates::read(
                long.input,
                long.cached_input,
                long.cache_write,
                long.output,
                long.reasoning,
            );
            rates.map(|rates| (long.above, rates))
        });
        Ok(Self {
            price: Price {
                rates,
                long: long.transpose().map_err(wrong)?,
            },
            provider: row.provider.clone(),
            models: row.models.clone(),
        })
    }
}

impl Rates {
    fn read(
        input: f64,
        cached_input: Option<f64>,
        cache_write: Option<f64>,
        output: f64,
        reasoning: Option<f64>,
    ) -> Result<Self, String> {
        let (input, output) = (rate(input)?, rate(output)?);
        let or = |other: Option<f64>, usual| other.map_or(Ok(usual), rate);
        Ok(Self {
            input,
            cached_input: or(cached_input, input)?,
            cache_write: or(cache_write, input)?,
            output,
            reasoning: or(reasoning, output)?,
        })
    }
}

/// Dollars in millionths, which must be whole.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 0 and 10^12"
)]
fn rate(dollars: f64) -> Result<u64, String> {
    if !(0.0..=MOST).contains(&dollars) {
        return Err(format!(
            "{dollars} is no price in dollars per million tokens"
        ));
    }
    let millionths = dollars * 1e6;
    if (millionths - millionths.round()).abs() > 1e-3 {
        return Err(format!("{dollars} has more than six decimal places"));
    }
    Ok(millionths.round() as u64)
}

impl Price {
    /// What an answer of `usage` costs. Each token is counted once: cached and written ones are parts of the input, thoughts a
    /// part of the output.
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        let rates = match self.long {
            Some((above, rates)) if usage.input_tokens > above => rates,
            _ => self.rates,
        };
        // A provider that counts a part as more than the whole is not paid for more than the whole.
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let written = usage.cache_write_tokens.min(usage.input_tokens - cached);
        let thoughts = usage.reasoning_tokens.min(usage.output_tokens);
        let parts = [
            (usage.input_tokens - cached - written, rates.input),
            (cached, rates.cached_input),
            (written, rates.cache_write),
            (usage.output_tokens - thoughts, rates.output),
            (thoughts, rates.reasoning),
        ];
        let picos = parts
            .iter()
            .map(|(tokens, rate)| u128::from(*tokens) * u128::from(*rate));
        NanoUsd::from_picos(picos.fold(0, u128::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage(input: u64, cached: u64, written: u64, output: u64, thoughts: u64) -> Usage {
        Usage {
            input_tokens: input,
            output_tokens: output,
            cached_input_tokens: cached,
            cache_write_tokens: written,
            reasoning_tokens: thoughts,
        }
    }

    #[test]
    fn the_embedded_table_can_be_read_and_each_row_says_where_it_is_from() {
        let table = PriceTable::embedded().unwrap();
        assert!(table.rows.len() > 20);
        let document: toml::Table = toml::from_str(EMBEDDED).unwrap();
        for row in document["price"].as_array().unwrap() {
            let source = row["source"].as_str().unwrap();
            assert!(source.starts_with("https://") || source.starts_with("built in"));
            assert!(row["read"].is_datetime(), "{row}");
        }
        // Each row can be found by each of its own patterns.
        for row in &table.rows {
            for model in &row.models {
                assert_eq!(
                    table.price(&row.provider, &model.replace('*', "0")),
                    Some(&row.price),
                    "{model}"
                );
            }
        }
    }

    #[test]
    fn known_answers_cost_what_a_calculator_says() {
        let table = PriceTable::embedded().unwrap();
        let cost = |provider, model, usage| {
            let price = table.price(provider, model);
            price.map(|price: &Price| price.cost(&usage).get())
        };
        // 600 at 0.15, 400 at 0.075, 100 at 0.60: 90 + 30 + 60 millionths of a dollar.
        let answer = usage(1000, 400, 0, 100, 50);
        assert_eq!(cost("openai", "gpt-4o-mini", answer), Some(180_000));
        assert_eq!(cost("OpenAI", "gpt-4o-mini", answer), Some(180_000));
        // 1,000 at 5, 2,000 at 0.5, 3,000 at 6.25, 100 at 25: 5,000 + 1,000 + 18,750 + 2,500.
        let answer = usage(6000, 2000, 3000, 100, 0);
        assert_eq!(cost("anthropic", "claude-opus-5", answer), Some(27_250_000));
        // One token more than the bound, and all of them cost more.
        let most = cost("anthropic", "claude-haiku-5-5", usage(100_000, 0, 0, 0, 0));
        let over = cost("anthropic", "claude-haiku-5-5", usage(100_001, 0, 0, 0, 0));
        assert_eq!((most, over), (Some(10_000_000), Some(50_000_500)));
        // 0.006 dollars per million: six trillionths of a thousand... each token is six thousand trillionths.
        let cached = usage(1, 1, 0, 0, 0);
        assert_eq!(cost("deepseek", "deepseek-flash", cached), Some(6));
        assert_eq!(cost("local", "anything", answer), Some(0));
    }

    #[test]
    fn an_unknown_price_is_not_zero() {
        let table = PriceTable::embedded().unwrap();
        for (provider, model) in [
            ("openai", "gpt-4o-audio-preview"),
            ("openai", "gpt-5.9"),
            ("office", "gpt-4o"),
            ("openai", ""),
        ] {
            assert_eq!(table.price(provider, model), None, "{provider}/{model}");
        }
    }

    #[test]
    fn a_file_of_ones_own_goes_before_the_embedded_table() {
        let own =
            "[[price]]\nprovider = '*'\nmodels = ['gpt-*']\ninput = 1\noutput = 2\nreasoning = 3\n";
        let table = PriceTable::embedded()
            .unwrap()
            .after(PriceTable::parse(own).unwrap());
        let cost = |provider, model| {
            let price = table.price(provider, model).unwrap();
            price.cost(&usage(1, 0, 0, 3, 1)).get()
        };
        assert_eq!(cost("openai", "gpt-4o-mini"), 8000);
        assert_eq!(cost("office", "gpt-x"), 8000);
        assert!(table.price("openai", "o4-mini").is_some());
    }

    #[test]
    fn patterns_stand_for_any_text_and_the_longest_one_counts() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*a", "a", false),
            ("*b*", "abc", true),
            ("*", "", true),
            ("a*b*c", "axbxbyc", true),
            ("a*b*b", "ab", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
        let rows = "[[price]]\nprovider = 'p'\nmodels = ['m*']\ninput = 1\noutput = 1\n\
            [[price]]\nprovider = 'p'\nmodels = ['m-large*']\ninput = 2\noutput = 2\n\
            [[price]]\nprovider = 'p'\nmodels = ['m-l']\ninput = 3\noutput = 3\n";
        let table = PriceTable::parse(rows).unwrap();
        let input = |model| table.price("p", model).unwrap().rates.input;
        assert_eq!(
            ["m", "m-large-2", "m-l"].map(input),
            [1_000_000, 2_000_000, 3_000_000]
        );
    }

    #[test]
    fn a_wrong_table_is_told_where() {
        for (text, part) in [
            ("[[price]]\nprovider = 'p'\n", "missing field"),
            (
                "[[price]]\nprovider = 'p'\nmodels = ['m']\ninput = 1\noutput = 1\nprise = 2\n",
                "prise",
            ),
            (
                "[[price]]\nprovider = 'p'\nmodels = []\ninput = 1\noutput = 1\n",
                "models is empty",
            ),
            (
                "[[price]]\nprovider = 'p'\nmodels = ['m']\ninput = -1\noutput = 1\n",
                "p/m: -1 is no price",
            ),
            (
                "[[price]]\nprovider = 'p'\nmodels = ['m']\ninput = 0.0000001\noutput = 1\n",
                "six decimal",
            ),
            (
                "[[price]]\nprovider = 'p'\nmodels = ['m']\ninput = nan\noutput = 1\n",
                "no price",
            ),
        ] {
            let error = PriceTable::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        /// Every token is paid once, at one rate: with all rates alike the cost is that of input and output, however the parts
        /// are counted.
        #[test]
        fn tokens_are_counted_once(
            input in 0..10_000_000u64, cached in 0..10_000_000u64, written in 0..10_000_000u64,
            output in 0..10_000_000u64, thoughts in 0..10_000_000u64, rate in 0..100_000_000u64,
        ) {
            let rates = Rates { input: rate, cached_input: rate, cache_write: rate, output: rate, reasoning: rate };
            let price = Price { rates, long: None };
            let expected = u128::from(input + output) * u128::from(rate);
            let cost = price.cost(&usage(input, cached, written, output, thoughts));
            prop_assert_eq!(cost, NanoUsd::from_picos(expected));
        }

        /// Sums do not depend on their order, and lose no more than half a billionth for each answer.
        #[test]
        fn sums_do_not_depend_on_their_order(mut tokens in proptest::collection::vec(0..1_000_000u64, 0..50)) {
            let price = PriceTable::embedded().unwrap().price("openai", "gpt-4o-mini").cloned().unwrap();
            let sum = |tokens: &[u64]| tokens.iter().map(|n| price.cost(&usage(*n, n / 2, 0, n / 3, n / 7))).sum::<NanoUsd>();
            let forward = sum(&tokens);
            tokens.reverse();
            prop_assert_eq!(forward, sum(&tokens));
            let exact: u128 = tokens.iter().map(|n| {
                u128::from(n - n / 2) * 150_000 + u128::from(n / 2) * 75_000 + u128::from(n / 3) * 600_000
            }).sum();
            let off = (u128::from(forward.get()) * 1000).abs_diff(exact);
            prop_assert!(off <= 500 * tokens.len() as u128);
        }
    }
}
