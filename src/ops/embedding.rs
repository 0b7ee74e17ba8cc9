//! Token embedding: looks rows of a table up, and adds up their gradients.
//!
//! A token that occurs several times adds its gradients in the order of the rows.

/// Copies each token's row of `table` (`[vocabulary, width]`) to `out` (`[tokens, width]`).
pub fn embedding(table: &[f32], width: usize, tokens: &[u32], out: &mut [f32]) {
    for (out, &token) in out.chunks_exact_mut(width).zip(tokens) {
        out.copy_from_slice(&table[token as usize * width..][..width]);
    }
}

/// Adds each row of `dy` (`[tokens, width]`) to its token's row of `gradient` (`[vocabulary, width]`).
pub fn embedding_backward(dy: &[f32], width: usize, tokens: &[u32], gradient: &mut [f32]) {
    for (dy, &token) in dy.chunks_exact(width).zip(tokens) {
        let row = &mut gradient[token as usize * width..][..width];
        row.iter_mut().zip(dy).for_each(|(g, d)| *g += d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_and_their_gradients_added() {
        let table: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let mut out = [0.0; 6];
        embedding(&table, 2, &[2, 0, 2], &mut out);
        assert_eq!(out, [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        let mut gradient = [1.0; 6];
        embedding_backward(&out, 2, &[2, 0, 2], &mut gradient);
        assert_eq!(gradient, [1.0, 2.0, 1.0, 1.0, 9.0, 11.0]);
    }
}
