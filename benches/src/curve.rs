//! Something that was looked at again and again: thirds, and whether it grows.

/// A value and when it was taken, in minutes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) minutes: f64,
    pub(crate) value: f64,
}

/// The means of the first, the middle and the last third.
pub(crate) fn thirds(samples: &[Sample]) -> [f64; 3] {
    let mean = |part: &[Sample]| part.iter().map(|s| s.value).sum::<f64>() / part.len() as f64;
    let third = samples.len() / 3;
    let (first, rest) = samples.split_at(third);
    let (middle, last) = rest.split_at(third);
    [mean(first), mean(middle), mean(last)]
}

/// By how much it grows in a minute: the line through the samples with the least squares.
pub(crate) fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, value) = (mean(|s| s.minutes), mean(|s| s.value));
    let covariance: f64 = samples.iter().map(|s| (s.minutes - time) * (s.value - value)).sum();
    let variance: f64 = samples.iter().map(|s| (s.minutes - time).powi(2)).sum();
    covariance / variance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Vec<Sample> {
        values
            .iter()
            .enumerate()
            .map(|(i, value)| Sample { minutes: i as f64 / 2.0, value: *value })
            .collect()
    }

    #[test]
    fn thirds_are_means_of_their_own_samples() {
        assert_eq!(thirds(&samples(&[1.0, 3.0, 4.0, 4.0, 9.0, 11.0])), [2.0, 4.0, 10.0]);
        assert_eq!(
            thirds(&samples(&[1.0, 2.0, 3.0, 5.0])),
            [1.0, 2.0, 4.0],
            "the last has what is left over"
        );
    }

    #[test]
    fn a_slope_is_by_the_minute() {
        assert_eq!(slope(&samples(&[5.0, 5.0, 5.0])), 0.0);
        assert_eq!(slope(&samples(&[1.0, 2.0, 3.0, 4.0])), 2.0);
        assert_eq!(slope(&samples(&[4.0, 1.0, 1.0, 4.0])), 0.0);
    }
}
