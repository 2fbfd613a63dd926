//! Statistics over rounds.

use serde_json::{Value, json};

use crate::load::Sample;

/// One measurement of one path.
#[derive(Clone, Debug)]
pub struct Round {
    pub calls_per_second: f64,
    /// In microseconds, like `p99`.
    pub p50: f64,
    pub p99: f64,
    /// Processor time per call in microseconds, by program: user, system.
    pub cpu: Vec<(f64, f64)>,
}

impl Round {
    /// Returns `None` if no call was answered.
    pub fn of(sample: &Sample) -> Option<Self> {
        let last = sample.latencies.len().checked_sub(1)?;
        let at = |share: f64| sample.latencies.get((last as f64 * share) as usize).copied();
        let calls = sample.calls as f64;
        Some(Self {
            calls_per_second: calls / sample.seconds,
            p50: at(0.5)? as f64 / 1000.0,
            p99: at(0.99)? as f64 / 1000.0,
            cpu: sample.spent.iter().map(|spent| (spent.user / calls, spent.system / calls)).collect(),
        })
    }

    /// Returns the processor time per call, summed over all programs.
    pub fn cpu_total(&self) -> f64 {
        self.cpu.iter().map(|(user, system)| user + system).sum()
    }
}

/// All rounds of one path with one shape.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    pub rounds: Vec<Round>,
    pub failure: Option<String>,
}

impl Rounds {
    /// Returns the median over the rounds.
    pub fn median(&self, figure: impl Fn(&Round) -> f64) -> Option<f64> {
        median(self.rounds.iter().map(figure).collect())
    }

    /// Returns the lowest value of the rounds.
    pub fn lowest(&self, figure: impl Fn(&Round) -> f64) -> Option<f64> {
        self.rounds.iter().map(figure).min_by(f64::total_cmp)
    }

    /// Returns the JSON for the document: medians, best values, and every round.
    pub fn json(&self, programs: &[String]) -> Value {
        let mut cpu = serde_json::Map::new();
        for (place, program) in programs.iter().enumerate() {
            let of = |round: &Round| round.cpu.get(place).copied().unwrap_or_default();
            let user = self.median(|round| of(round).0).map(tidy);
            let system = self.median(|round| of(round).1).map(tidy);
            cpu.insert(program.clone(), json!({ "user_us": user, "system_us": system }));
        }
        let each = self.rounds.iter().map(|round| {
            json!({
                "calls_per_second": tidy(round.calls_per_second),
                "p50_us": tidy(round.p50),
                "p99_us": tidy(round.p99),
                "cpu_us_per_call": tidy(round.cpu_total()),
            })
        });
        json!({
            "calls_per_second": self.median(|round| round.calls_per_second).map(tidy),
            "p50_us": self.median(|round| round.p50).map(tidy),
            "p99_us": self.median(|round| round.p99).map(tidy),
            "best_p50_us": self.lowest(|round| round.p50).map(tidy),
            "quietest_p99_by_p50": self.lowest(|round| round.p99 / round.p50).map(tidy),
            "cpu_us_per_call": self.median(Round::cpu_total).filter(|_| !programs.is_empty()).map(tidy),
            "cpu": cpu,
            "rounds": each.collect::<Vec<_>>(),
            "failure": self.failure,
        })
    }
}

/// Returns the median of the values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// Rounds to two decimals.
pub fn tidy(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
