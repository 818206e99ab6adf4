//! Questions to the application.

use super::families::Families;
use super::store_metrics::state_number;
use crate::hooks::{HookState, Hooks, OUTCOMES};

/// Upper bounds of what answers take, in seconds.
const ANSWER_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Counters, gauges and times of every hook that is on.
pub(super) fn collect(families: &mut Families, hooks: &Hooks) {
    let states: Vec<HookState> = hooks.states().collect();
    let by_hook = |value: fn(&HookState) -> f64| {
        states.iter().map(move |state| (state.kind.as_str().to_owned(), value(state)))
    };
    families.labelled_counters(
        "archmesh_hook_questions_total",
        "Questions to the application by hook and what became of them; overloaded, breaker and left were not asked.",
        states.iter().flat_map(|state| {
            OUTCOMES.iter().zip(state.outcomes).map(|(outcome, count)| {
                (vec![("hook", state.kind.as_str()), ("outcome", *outcome)], count as f64)
            })
        }),
    );
    families.gauges(
        "archmesh_hook_waiting",
        "Questions that wait for their turn.",
        &["hook"],
        by_hook(|state| state.waiting as f64),
    );
    families.gauges(
        "archmesh_hook_in_flight",
        "Questions that the application is being asked.",
        &["hook"],
        by_hook(|state| state.in_flight as f64),
    );
    families.gauges(
        "archmesh_hook_breaker_state",
        "Breaker in front of a hook: 0 closed, 1 half open, 2 open.",
        &["hook"],
        states.iter().filter_map(|state| {
            Some((state.kind.as_str().to_owned(), state_number(state.breaker?)))
        }),
    );
    let times: Vec<_> = states.iter().map(|state| (state.kind, hooks.times(state.kind))).collect();
    families.histograms(
        ("archmesh_hook_answer_seconds", "Time that the application took to answer."),
        &["hook"],
        (ANSWER_SECONDS, 1e6),
        times.iter().map(|(kind, times)| (kind.as_str().to_owned(), times)),
    );
}
