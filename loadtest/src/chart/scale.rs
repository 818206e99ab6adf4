//! Axes: where a value is drawn and which values get a tick.

/// Values that a logarithmic axis can tell from zero.
const TINY: f64 = 1e-6;
/// What [`Scale::Nines`] shows at most: 99.99999 %.
const NINES_MAX: f64 = 7.0;

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By their logarithm.
    Log,
    /// Shares from 0 to 1 by how near they are to 1: 0.9, 0.99 and 0.999 stand at equal distances.
    Nines,
}

impl Scale {
    fn project(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(TINY).log10(),
            Self::Nines => (-(1.0 - value).log10()).clamp(0.0, NINES_MAX),
        }
    }

    /// The axis that shows `values`, on `start` to `end` of the drawing. Bounds are widened to ticks where `round` asks.
    pub(super) fn fit(
        self,
        values: impl Iterator<Item = f64>,
        (start, end): (f64, f64),
        round: bool,
        ticks: usize,
    ) -> Fitted {
        let (mut low, mut high) = values
            // A logarithmic axis has no zero: it is drawn at the bottom.
            .filter(|value| value.is_finite() && (self != Self::Log || *value > 0.0))
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = match self {
                Self::Linear => (0.0, 1.0),
                Self::Log => (0.1, 1.0),
                Self::Nines => (0.0, 0.99),
            };
        }
        let ticks = match self {
            Self::Linear => {
                low = low.min(0.0);
                linear_ticks(&mut low, &mut high, round, ticks)
            }
            Self::Log => log_ticks(&mut low, &mut high),
            Self::Nines => {
                low = 0.0;
                high = high.max(0.9);
                nines_ticks(high)
            }
        };
        Fitted { scale: self, low, high, start, end, ticks }
    }
}

/// An axis with its bounds.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    scale: Scale,
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    /// Values with a tick, and what is written at it.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Fitted {
    /// Where `value` is drawn.
    pub(super) fn place(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.project(self.low), self.scale.project(self.high));
        let width = if high > low { high - low } else { 1.0 };
        let part = ((self.scale.project(value) - low) / width).clamp(0.0, 1.0);
        self.start + part * (self.end - self.start)
    }
}

/// The step of 1, 2 or 5 times a power of ten that makes about `count` parts of `width` or fewer.
fn nice_step(width: f64, count: usize) -> f64 {
    let raw = width / count.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= raw * 0.95);
    factor.unwrap_or(10.0) * power
}

fn linear_ticks(low: &mut f64, high: &mut f64, round: bool, count: usize) -> Vec<(f64, String)> {
    if *high <= *low {
        *high = *low + 1.0;
    }
    let step = nice_step(*high - *low, count);
    if round {
        *low = (*low / step).floor() * step;
        *high = (*high / step - 1e-9).ceil() * step;
    }
    let (first, last) = ((*low / step).ceil() as i64, (*high / step + 1e-9).floor() as i64);
    let largest = step * first.abs().max(last.abs()) as f64;
    (first..=last).map(|nth| (nth as f64 * step, label(nth as f64 * step, step, largest))).collect()
}

fn log_ticks(low: &mut f64, high: &mut f64) -> Vec<(f64, String)> {
    let steps = |value: f64| {
        let power = 10f64.powf(value.max(TINY).log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power)
    };
    let start = steps(*low).into_iter().rfind(|step| *step <= *low * 1.0001);
    let end = steps(*high).into_iter().find(|step| *step >= *high * 0.9999);
    *low = start.unwrap_or(TINY);
    *high = end.unwrap_or(1.0);
    *low = low.min(*high / 10.0);
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let factors: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let values = (first..=last)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    values
        .filter(|value| *value >= *low * 0.9999 && *value <= *high * 1.0001)
        .map(|value| (value, label(value, value, value)))
        .collect()
}

fn nines_ticks(high: f64) -> Vec<(f64, String)> {
    let nines = (1..=NINES_MAX as i32).map(|nines| 1.0 - 10f64.powi(-nines));
    // Beside many nines there is no room for two labels at the start.
    let start: &[f64] = if high > 0.999_95 { &[0.5] } else { &[0.0, 0.5] };
    start
        .iter()
        .copied()
        .chain(nines)
        .take_while(|share| *share <= high + 1e-12)
        .map(|share| {
            let decimals = (Scale::Nines.project(share).round() as usize).saturating_sub(2);
            (share, format!("{:.decimals$} %", share * 100.0))
        })
        .collect()
}

/// A tick's value, with as many decimals as the step needs; large ones in thousands or millions.
fn label(value: f64, step: f64, largest: f64) -> String {
    let (unit, suffix) = match largest.abs() {
        large if large >= 1e6 => (1e6, "M"),
        large if large >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
    if value == 0.0 { "0".into() } else { format!("{:.decimals$}{suffix}", value / unit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64], round: bool) -> Vec<String> {
        let fitted = scale.fit(values.iter().copied(), (0.0, 100.0), round, 5);
        fitted.ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_cover_the_values() {
        assert_eq!(labels(Scale::Linear, &[3.0, 9.7], true), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(Scale::Linear, &[0.03], true), ["0", "0.01", "0.02", "0.03"]);
        assert_eq!(
            labels(Scale::Linear, &[48_000.0], true).last().map(String::as_str),
            Some("50k")
        );
        assert_eq!(labels(Scale::Linear, &[1.2e6], true), ["0", "0.5M", "1.0M", "1.5M"]);
        // Without rounding the axis ends with the data.
        assert_eq!(labels(Scale::Linear, &[0.0, 33.0], false), ["0", "10", "20", "30"]);
        let fitted = Scale::Linear.fit([0.0, 33.0].into_iter(), (0.0, 66.0), false, 5);
        assert!(
            (fitted.place(33.0) - 66.0).abs() < 1e-9 && (fitted.place(16.5) - 33.0).abs() < 1e-9
        );
    }

    #[test]
    fn logarithmic_ticks_stand_at_equal_distances() {
        assert_eq!(
            labels(Scale::Log, &[0.3, 40.0], true),
            ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]
        );
        assert_eq!(
            labels(Scale::Log, &[0.01, 20_000.0], true).first().map(String::as_str),
            Some("0.01")
        );
        let fitted = Scale::Log.fit([1.0, 100.0].into_iter(), (0.0, 2.0), true, 5);
        assert!((fitted.place(10.0) - 1.0).abs() < 1e-9);
        assert!(fitted.place(0.0) >= 0.0, "zero is drawn at the bottom");
        assert_eq!(labels(Scale::Log, &[0.0, 200.0, 400.0], true), ["50", "100", "200", "500"]);
    }

    #[test]
    fn nines_stand_at_equal_distances() {
        let expected = ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"];
        assert_eq!(labels(Scale::Nines, &[0.5, 0.9999], false), expected);
        let fitted = Scale::Nines.fit([0.999].into_iter(), (0.0, 3.0), false, 5);
        for (share, place) in [(0.0, 0.0), (0.9, 1.0), (0.99, 2.0), (1.0, 3.0)] {
            assert!((fitted.place(share) - place).abs() < 1e-6, "{share}");
        }
    }

    #[test]
    fn an_axis_without_values_is_an_axis() {
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            for values in [&[][..], &[f64::NAN], &[0.0], &[5.0]] {
                let fitted = scale.fit(values.iter().copied(), (10.0, 90.0), true, 5);
                assert!(fitted.ticks.len() >= 2, "{scale:?} {values:?} {:?}", fitted.ticks);
                assert!(fitted.ticks.len() <= 12, "{scale:?} {values:?} {:?}", fitted.ticks);
                assert!((10.0..=90.0).contains(&fitted.place(0.5)));
            }
        }
    }
}
