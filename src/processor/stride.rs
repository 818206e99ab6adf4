//! Which lane starts a job next: stride scheduling.
//!
//! Every lane has a pass, which moves on by its stride (the inverse of its weight) whenever the lane is served; the
//! lane with the lowest pass is served, the higher priority when passes are equal. A lane that had nothing to run
//! begins again at the present pass at the earliest, so that being idle saves nothing up. While a lane of weight `w`
//! can run, each other lane of weight `v` is therefore served at most `v / w + 1` times between two of its turns.

/// Stride of weight 1. Far above the largest weight, so that rounding does not matter.
const STRIDE_ONE: u128 = 1 << 32;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Stride {
    strides: [u128; 4],
    /// 128 bits, which never overflow.
    passes: [u128; 4],
    awake: [bool; 4],
    now: u128,
}

impl Stride {
    /// Weights are at least 1.
    pub(super) fn new(weights: [u32; 4]) -> Self {
        Self {
            strides: weights.map(|weight| STRIDE_ONE / u128::from(weight)),
            passes: [0; 4],
            awake: [false; 4],
            now: 0,
        }
    }

    /// Serves one of the lanes that can run.
    pub(super) fn pick(&mut self, runnable: [bool; 4]) -> Option<usize> {
        for (lane, can) in runnable.into_iter().enumerate() {
            if can && !self.awake[lane] {
                self.passes[lane] = self.passes[lane].max(self.now);
            }
            self.awake[lane] = can;
        }
        // Of equal ones `min_by_key` keeps the first, hence from the top.
        let lane = (0..4).rev().filter(|lane| runnable[*lane]).min_by_key(|l| self.passes[*l])?;
        self.now = self.passes[lane];
        self.passes[lane] += self.strides[lane];
        Some(lane)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WEIGHTS: [u32; 4] = [1, 2, 4, 8];

    #[test]
    fn shares_follow_the_weights() {
        let mut stride = Stride::new(WEIGHTS);
        let mut served = [0; 4];
        for _ in 0..1_500 {
            served[stride.pick([true; 4]).unwrap()] += 1;
        }
        assert_eq!(served, [100, 200, 400, 800]);
        assert_eq!(stride.pick([false; 4]), None);
        assert_eq!(stride.pick([true, false, false, false]), Some(0));
    }

    #[test]
    fn critical_passes_first_and_idle_lanes_save_nothing_up() {
        let mut stride = Stride::new(WEIGHTS);
        for _ in 0..1_000 {
            assert_eq!(stride.pick([true, true, false, false]).unwrap() / 2, 0);
        }
        let first: Vec<usize> = (0..15).map(|_| stride.pick([true; 4]).unwrap()).collect();
        assert_eq!(first[0], 3, "{first:?}");
        let critical = first.iter().filter(|lane| **lane == 3).count();
        assert!((7..=9).contains(&critical), "{first:?}");
    }

    /// Lanes come and go at random; one that stays has its turn within the bound all the same.
    #[test]
    fn no_lane_starves() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let weights = [(); 4].map(|()| random.u32(1..=16));
            let mut stride = Stride::new(weights);
            let mut others = [[0_u32; 4]; 4];
            for _ in 0..5_000 {
                let runnable = [(); 4].map(|()| random.u8(..8) > 0);
                let Some(served) = stride.pick(runnable) else { continue };
                for lane in 0..4 {
                    if lane == served || !runnable[lane] {
                        others[lane] = [0; 4];
                        continue;
                    }
                    others[lane][served] += 1;
                    let max = weights[served] / weights[lane] + 1;
                    assert!(others[lane][served] <= max, "seed {seed}: {lane} waits for {served}");
                }
            }
        }
    }
}
