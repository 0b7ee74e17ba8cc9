// Times generation of given numbers of tokens after given prompts by llama.cpp, the most likely token each
// time; generate.py beside it runs it in turn with other engines.
//
// All sequences of a job are decoded together, and one that has its tokens leaves the batch. The context is
// made and warmed up before the clock runs; threads wait for work in a pool, as in llama.cpp's own tools.
//
// stdin, for each job: a line with the number of prompts, then for each a line "NEW_TOKENS ID ID ...".
// stdout, for each job: {"seconds": wall time, "tokens": [[id, ...], ...]}.
// Usage: llama_generate MODEL.gguf THREADS

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama.h"

struct Sequence {
    std::vector<llama_token> prompt, tokens;
    size_t wanted = 0;
    int row = -1;  // of the last batch, where its logits are
};

static void fail(const char * what) {
    std::fprintf(stderr, "llama_generate: %s\n", what);
    std::exit(1);
}

static void add(llama_batch & batch, llama_token token, size_t position, size_t sequence, bool logits) {
    const int row = batch.n_tokens++;
    batch.token[row] = token;
    batch.pos[row] = (llama_pos) position;
    batch.n_seq_id[row] = 1;
    batch.seq_id[row][0] = (llama_seq_id) sequence;
    batch.logits[row] = logits;
}

static ggml_threadpool * pool_of(int threads) {
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    const auto make = (decltype(ggml_threadpool_new) *) ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_new");
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    ggml_threadpool * pool = make(&params);
    if (!pool) fail("no threads");
    return pool;
}

class Generation {
  public:
    Generation(llama_model * model, int threads, ggml_threadpool * pool, std::vector<Sequence> & sequences)
        : sequences(sequences), vocab(llama_vocab_n_tokens(llama_model_get_vocab(model))) {
        size_t longest = 0;
        for (const auto & s : sequences) longest = std::max(longest, s.prompt.size() + s.wanted);
        llama_context_params params = llama_context_default_params();
        params.n_seq_max = (uint32_t) sequences.size();
        // Without a unified cache each sequence has an equal share, a multiple of 256.
        params.n_ctx = (uint32_t) (sequences.size() * ((longest + 255) / 256 * 256));
        params.n_batch = BATCH;
        params.n_threads = params.n_threads_batch = threads;
        context = llama_init_from_model(model, params);
        if (!context) fail("no context");
        llama_attach_threadpool(context, pool, nullptr);
        batch = llama_batch_init(BATCH, 0, 1);
    }

    ~Generation() {
        llama_batch_free(batch);
        llama_free(context);
    }

    void warm_up() {
        for (size_t i = 0; i < sequences.size(); i++) add(batch, sequences[i].prompt[0], 0, i, true);
        decode();
        llama_synchronize(context);
        llama_memory_clear(llama_get_memory(context), false);
    }

    void run() {
        read_prompts();
        while (batch.n_tokens > 0) {
            decode();
            take_tokens();
        }
    }

  private:
    static constexpr int BATCH = 2048;
    std::vector<Sequence> & sequences;
    int vocab;
    llama_context * context;
    llama_batch batch;

    void decode() {
        if (llama_decode(context, batch) != 0) fail("llama_decode");
        batch.n_tokens = 0;
    }

    // Logits are read before the next decode, so the prompts of a batch get their first token at once.
    void read_prompts() {
        std::vector<size_t> ended;
        for (size_t i = 0; i < sequences.size(); i++) {
            Sequence & s = sequences[i];
            if (batch.n_tokens + (int) s.prompt.size() > BATCH) {
                decode();
                for (size_t done : ended) take_token(sequences[done]);
                ended.clear();
            }
            for (size_t p = 0; p < s.prompt.size(); p++) add(batch, s.prompt[p], p, i, p + 1 == s.prompt.size());
            s.row = batch.n_tokens - 1;
            ended.push_back(i);
        }
        decode();
        for (size_t done : ended) take_token(sequences[done]);
        add_running();
    }

    void take_tokens() {
        for (auto & s : sequences) {
            if (s.tokens.size() < s.wanted) take_token(s);
        }
        add_running();
    }

    void take_token(Sequence & s) {
        const float * logits = llama_get_logits_ith(context, s.row);
        if (!logits) fail("no logits");
        s.tokens.push_back((llama_token) (std::max_element(logits, logits + vocab) - logits));
    }

    void add_running() {
        for (size_t i = 0; i < sequences.size(); i++) {
            Sequence & s = sequences[i];
            if (s.tokens.size() == s.wanted) continue;
            s.row = batch.n_tokens;
            add(batch, s.tokens.back(), s.prompt.size() + s.tokens.size() - 1, i, true);
        }
    }
};

static std::vector<Sequence> read_job(size_t count) {
    std::vector<Sequence> sequences(count);
    std::string line;
    for (auto & s : sequences) {
        if (!std::getline(std::cin, line)) fail("a job ends early");
        std::istringstream words(line);
        words >> s.wanted;
        for (llama_token id; words >> id;) s.prompt.push_back(id);
        if (s.wanted == 0 || s.prompt.empty()) fail("a prompt or its number of tokens is empty");
    }
    return sequences;
}

static void print(double seconds, const std::vector<Sequence> & sequences) {
    std::printf("{\"seconds\": %.6f, \"tokens\": [", seconds);
    for (size_t i = 0; i < sequences.size(); i++) {
        std::printf(i ? ", [" : "[");
        const auto & tokens = sequences[i].tokens;
        for (size_t t = 0; t < tokens.size(); t++) std::printf(t ? ", %d" : "%d", tokens[t]);
        std::printf("]");
    }
    std::printf("]}\n");
    std::fflush(stdout);
}

int main(int argc, char ** argv) {
    if (argc != 3) fail("usage: llama_generate MODEL.gguf THREADS");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("the model does not open");
    const int threads = std::atoi(argv[2]);
    ggml_threadpool * pool = pool_of(threads);  // until the process ends
    for (std::string line; std::getline(std::cin, line);) {
        std::vector<Sequence> sequences = read_job(std::stoul(line));
        Generation generation(model, threads, pool, sequences);
        generation.warm_up();
        const auto start = std::chrono::steady_clock::now();
        generation.run();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        print(seconds.count(), sequences);
    }
    llama_model_free(model);
}
