//! The block pool knows how many sequences hold each block of the key-value cache.
//!
//! A block becomes free when its last holder drops it. The pool also remembers the full blocks of earlier
//! prompts, each by its tokens and by all that stood before it, so that a later prompt that begins alike
//! shares them. When no block is free, the pool gives up remembered blocks: first those that were used
//! least recently, and of these the last of the prompt. The keys and values themselves are in
//! `model::KvCache`.

use crate::model::BLOCK_TOKENS;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// All blocks of a cache.
pub(crate) struct BlockPool {
    holders: Rc<RefCell<Holders>>,
    prefixes: Prefixes,
}

/// How many holders each block has, and which blocks have none.
struct Holders {
    counts: Vec<u32>,
    free: Vec<u32>,
}

/// A share in a block: the block becomes free when its last share is dropped.
pub(crate) struct Block {
    number: u32,
    holders: Rc<RefCell<Holders>>,
}

impl Block {
    /// Returns the block's index in the cache.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    fn is_shared(&self) -> bool {
        self.holders.borrow().counts[self.number as usize] > 1
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        self.holders.borrow_mut().counts[self.number as usize] += 1;
        Self { number: self.number, holders: Rc::clone(&self.holders) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut holders = self.holders.borrow_mut();
        let count = &mut holders.counts[self.number as usize];
        *count -= 1;
        if *count == 0 {
            holders.free.push(self.number);
        }
    }
}

impl BlockPool {
    /// Creates a pool of `num_blocks` blocks, all of them free.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let holders =
            Holders { counts: vec![0; num_blocks], free: (0..num_blocks as u32).rev().collect() };
        Self { holders: Rc::new(RefCell::new(holders)), prefixes: Prefixes::default() }
    }

    /// Takes a free block. Where none is free, it takes one that is only remembered for later prompts.
    /// Returns `None` when sequences hold all blocks.
    pub(crate) fn take(&mut self) -> Option<Block> {
        if self.holders.borrow().free.is_empty() {
            self.prefixes.forget_one();
        }
        let mut holders = self.holders.borrow_mut();
        let number = holders.free.pop()?;
        holders.counts[number as usize] = 1;
        Some(Block { number, holders: Rc::clone(&self.holders) })
    }

    /// Counts the blocks that sequences hold; a block that is only remembered for later prompts does not
    /// count.
    pub(crate) fn in_use(&self) -> usize {
        let holders = self.holders.borrow();
        let only_kept = self.prefixes.entries.values().filter(|entry| !entry.block.is_shared());
        holders.counts.len() - holders.free.len() - only_kept.count()
    }

    /// Returns the remembered blocks with which `prompt` begins. The last token of `prompt` is never in
    /// them: its logits have to be computed.
    pub(crate) fn find_prefix(&mut self, prompt: &[u32]) -> Vec<Block> {
        self.prefixes.find(&prompt[..prompt.len() - 1])
    }

    /// Remembers the full blocks of a prompt whose keys and values are computed.
    pub(crate) fn keep_prefix(&mut self, prompt: &[u32], blocks: &[Block]) {
        self.prefixes.keep(prompt, blocks);
    }
}

/// The remembered blocks, found by what they contain.
#[derive(Default)]
struct Prefixes {
    entries: HashMap<Content, Entry>,
    /// Entries in the order in which they are given up: by the time of their last use, then the deepest
    /// first.
    by_age: BTreeMap<(u64, std::cmp::Reverse<u64>), Content>,
    clock: u64,
    num_made: u64,
}

/// The tokens of a block, and the id of the entry before it (0 for the first block). Blocks of equal
/// content hold equal keys and values.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: u64,
    tokens: [u32; BLOCK_TOKENS],
}

struct Entry {
    /// An id is never used twice, even after its entry is gone, and it is larger than the id of the entry
    /// before it.
    id: u64,
    last_used: u64,
    block: Block,
}

impl Prefixes {
    fn find(&mut self, prompt: &[u32]) -> Vec<Block> {
        self.clock += 1;
        let mut blocks = Vec::new();
        let mut parent = 0;
        for &tokens in prompt.as_chunks().0 {
            let content = Content { parent, tokens };
            let Some(entry) = self.entries.get_mut(&content) else { break };
            parent = entry.id;
            blocks.push(entry.block.clone());
            let age = (entry.last_used, std::cmp::Reverse(entry.id));
            entry.last_used = self.clock;
            self.by_age.remove(&age);
            self.by_age.insert((self.clock, age.1), content);
        }
        blocks
    }

    fn keep(&mut self, prompt: &[u32], blocks: &[Block]) {
        self.clock += 1;
        let mut parent = 0;
        for (&tokens, block) in prompt.as_chunks().0.iter().zip(blocks) {
            let content = Content { parent, tokens };
            if let Some(entry) = self.entries.get(&content) {
                parent = entry.id;
                continue;
            }
            self.num_made += 1;
            let (id, last_used) = (self.num_made, self.clock);
            let entry = Entry { id, last_used, block: block.clone() };
            self.by_age.insert((last_used, std::cmp::Reverse(id)), content.clone());
            self.entries.insert(content, entry);
            parent = id;
        }
    }

    /// Gives up entries until one of them frees a block.
    fn forget_one(&mut self) {
        while let Some((_, content)) = self.by_age.pop_first() {
            let entry = self.entries.remove(&content);
            if entry.is_some_and(|entry| !entry.block.is_shared()) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(len: usize) -> Vec<u32> {
        (0..len as u32).collect()
    }

    fn numbers(blocks: &[Block]) -> Vec<u32> {
        blocks.iter().map(Block::number).collect()
    }

    fn taken(pool: &mut BlockPool, count: usize) -> Vec<Block> {
        (0..count).map(|_| pool.take().unwrap()).collect()
    }

    #[test]
    fn a_block_is_free_when_its_last_holder_is_gone() {
        let mut pool = BlockPool::new(1);
        let block = pool.take().unwrap();
        let shared = block.clone();
        drop(block);
        assert!(pool.take().is_none());
        assert_eq!(pool.in_use(), 1);
        drop(shared);
        assert_eq!(pool.in_use(), 0);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_prompt_shares_the_full_blocks_of_one_that_began_alike() {
        let mut pool = BlockPool::new(8);
        let prompt = tokens(3 * BLOCK_TOKENS + 5);
        let blocks = taken(&mut pool, 4);
        pool.keep_prefix(&prompt, &blocks);
        let kept = numbers(&blocks);
        drop(blocks);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(numbers(&pool.find_prefix(&prompt)), kept[..3]);
        // The last token is always computed, for its logits.
        assert_eq!(numbers(&pool.find_prefix(&prompt[..2 * BLOCK_TOKENS])), kept[..1]);
        let mut other = prompt.clone();
        other[BLOCK_TOKENS] += 1;
        assert_eq!(numbers(&pool.find_prefix(&other)), kept[..1]);
        // The same tokens at another position have other keys and values.
        assert!(pool.find_prefix(&prompt[BLOCK_TOKENS..]).is_empty());
    }

    #[test]
    fn kept_prefixes_give_way_oldest_and_deepest_first() {
        let mut pool = BlockPool::new(3);
        let prompt = tokens(2 * BLOCK_TOKENS);
        let blocks = taken(&mut pool, 2);
        pool.keep_prefix(&prompt, &blocks);
        let other: Vec<u32> = tokens(BLOCK_TOKENS).iter().map(|t| t + 1).collect();
        let last = taken(&mut pool, 1);
        pool.keep_prefix(&other, &last);
        let first = blocks[0].number();
        drop((blocks, last));
        let longer = tokens(2 * BLOCK_TOKENS + 1);
        let _new = taken(&mut pool, 1);
        assert_eq!(numbers(&pool.find_prefix(&longer)), [first]);
        let _newer = taken(&mut pool, 1);
        assert_eq!(numbers(&pool.find_prefix(&longer)), [first], "used last, given up last");
        let _newest = taken(&mut pool, 1);
        assert!(pool.find_prefix(&longer).is_empty());
        assert!(pool.take().is_none());
    }
}
