//! Who holds which block of the cache.
//!
//! Contract: a block is free when its last holder drops it; nothing has to be given back by hand. Full
//! blocks of prompts are remembered by their content and all that came before them, so that a later
//! prompt that begins alike shares them; they are given up, least recently used and deepest first,
//! when blocks run out. Left out: what the blocks contain (`model::KvCache`).

use crate::model::BLOCK_TOKENS;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// All blocks, free or held.
pub(crate) struct BlockPool {
    holders: Rc<RefCell<Holders>>,
    prefixes: Prefixes,
}

/// How many hold each block, and the blocks that nobody holds.
struct Holders {
    counts: Vec<u32>,
    free: Vec<u32>,
}

/// A share in a block; the block is free when the last share is dropped.
pub(crate) struct Block {
    number: u32,
    holders: Rc<RefCell<Holders>>,
}

impl Block {
    /// Its place in the cache.
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
    /// `num_blocks` free blocks.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let holders =
            Holders { counts: vec![0; num_blocks], free: (0..num_blocks as u32).rev().collect() };
        Self { holders: Rc::new(RefCell::new(holders)), prefixes: Prefixes::default() }
    }

    /// A free block; where there is none, one that only memory of an earlier prompt holds.
    pub(crate) fn take(&mut self) -> Option<Block> {
        if self.holders.borrow().free.is_empty() {
            self.prefixes.forget_one();
        }
        let mut holders = self.holders.borrow_mut();
        let number = holders.free.pop()?;
        holders.counts[number as usize] = 1;
        Some(Block { number, holders: Rc::clone(&self.holders) })
    }

    /// Blocks that sequences hold; those kept only for later prompts do not count.
    pub(crate) fn in_use(&self) -> usize {
        let holders = self.holders.borrow();
        let only_kept = self.prefixes.entries.values().filter(|entry| !entry.block.is_shared());
        holders.counts.len() - holders.free.len() - only_kept.count()
    }

    /// The blocks of earlier prompts that begin as `prompt` does, short of its last token, whose
    /// logits must be computed.
    pub(crate) fn find_prefix(&mut self, prompt: &[u32]) -> Vec<Block> {
        self.prefixes.find(&prompt[..prompt.len() - 1])
    }

    /// Remembers the full blocks of a prompt that has been computed.
    pub(crate) fn keep_prefix(&mut self, prompt: &[u32], blocks: &[Block]) {
        self.prefixes.keep(prompt, blocks);
    }
}

/// Full blocks by what they contain.
#[derive(Default)]
struct Prefixes {
    entries: HashMap<Content, Entry>,
    /// What to give up first: the time of the last use, then the deepest.
    by_age: BTreeMap<(u64, std::cmp::Reverse<u64>), Content>,
    clock: u64,
    num_made: u64,
}

/// The tokens of a block and the identity of the entry before it: equal content means equal keys
/// and values.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: u64,
    tokens: [u32; BLOCK_TOKENS],
}

struct Entry {
    /// Never used twice, not even after the entry is gone; above that of its parent.
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

    /// Gives up entries until a block comes free.
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
        // The same tokens in another place are something else.
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
