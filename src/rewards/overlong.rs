//! DAPO's soft punishment of responses that come close to the length limit.

/// Falls in a straight line from 0, where the last `buffer` tokens before `limit` begin, to
/// -`factor` at the limit.
pub fn overlong_penalty(length: usize, limit: usize, buffer: usize, factor: f64) -> f64 {
    let over = length as f64 - (limit as f64 - buffer as f64);
    (-over / buffer as f64 * factor).min(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_gives_the_published_values() {
        for (length, expected) in
            [(100, 0.0), (16_384, 0.0), (17_000, -0.150_391), (18_432, -0.5), (20_480, -1.0)]
        {
            let penalty = overlong_penalty(length, 20_480, 4096, 1.0);
            assert!((penalty - expected).abs() < 1e-6, "{length}: {penalty}");
        }
    }
}
