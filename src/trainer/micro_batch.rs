//! Rows of samples that go through the model together.

use crate::data::pack::Batch;
use crate::model::{Packed, Target};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicroBatch {
    pub(crate) packed: Packed,
    pub(crate) targets: Vec<Target>,
}

impl MicroBatch {
    pub fn join(rows: &[Batch]) -> Self {
        let mut joined = Self::default();
        joined.packed.cu_seqlens.push(0);
        for row in rows {
            let start = joined.packed.tokens.len();
            joined.packed.tokens.extend_from_slice(&row.tokens);
            let ends = row.cu_seqlens.iter().skip(1).map(|&end| start + end as usize);
            joined.packed.cu_seqlens.extend(ends);
            let target = |&(row, token): &(u32, u32)| Target { row: start + row as usize, token };
            joined.targets.extend(row.targets.iter().map(target));
        }
        joined
    }

    /// Rows that the model computes.
    pub(crate) fn num_tokens(&self) -> usize {
        self.packed.tokens.len()
    }

    pub(crate) fn empty() -> Self {
        let packed = Packed { cu_seqlens: vec![0], cu_families: vec![0], ..Packed::default() };
        Self { packed, targets: Vec::new() }
    }

    /// Appends a prompt and responses to it. Each response has at least one token, and all of them are
    /// targets, in order. Several responses share the prompt's rows. The last token of a response has no
    /// row, since nothing is predicted from it.
    pub(crate) fn push(&mut self, prompt: &[u32], responses: &[&[u32]]) {
        let Packed { tokens, cu_seqlens, cu_families } = &mut self.packed;
        tokens.extend_from_slice(prompt);
        let last_of_prompt = tokens.len() - 1;
        let mut predict = |rows: &mut dyn Iterator<Item = usize>, response: &[u32]| {
            let target = |(row, &token): (usize, &u32)| Target { row, token };
            self.targets.extend(rows.zip(response).map(target));
        };
        if let [response] = responses {
            predict(&mut (last_of_prompt..), response);
            tokens.extend_from_slice(response);
            cu_seqlens.push(tokens.len());
        } else {
            cu_seqlens.push(tokens.len());
            for response in responses {
                predict(&mut std::iter::once(last_of_prompt).chain(tokens.len()..), response);
                if let [read @ .., _] = response
                    && !read.is_empty()
                {
                    tokens.extend_from_slice(read);
                    cu_seqlens.push(tokens.len());
                }
            }
        }
        cu_families.push(cu_seqlens.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_rows_keep_their_sequences_and_targets() {
        let row = |token: u32| Batch {
            tokens: vec![token; 3],
            cu_seqlens: vec![0, 1, 3],
            targets: vec![(1, token)],
            ..Batch::default()
        };
        let joined = MicroBatch::join(&[row(5), row(6)]);
        assert_eq!(joined.packed.tokens, [5, 5, 5, 6, 6, 6]);
        assert_eq!(joined.packed.cu_seqlens, [0, 1, 3, 4, 6]);
        let targets = [(1, 5), (4, 6)].map(|(row, token)| Target { row, token });
        assert_eq!(joined.targets, targets);
    }

    #[test]
    fn responses_to_one_prompt_share_its_rows() {
        let mut row = MicroBatch::empty();
        row.push(&[1, 2], &[&[3, 4]]);
        row.push(&[5, 6], &[&[7, 8, 9], &[10], &[11, 12]]);
        let Packed { tokens, cu_seqlens, cu_families } = &row.packed;
        assert_eq!(*tokens, [1, 2, 3, 4, 5, 6, 7, 8, 11]);
        assert_eq!((&cu_seqlens[..], &cu_families[..]), (&[0, 4, 6, 8, 9][..], &[0, 1, 4][..]));
        let targets: Vec<(usize, u32)> = row.targets.iter().map(|t| (t.row, t.token)).collect();
        let alone = [(1, 3), (2, 4)];
        let shared = [(5, 7), (6, 8), (7, 9), (5, 10), (5, 11), (8, 12)];
        assert_eq!(targets, [&alone[..], &shared].concat());
    }
}
