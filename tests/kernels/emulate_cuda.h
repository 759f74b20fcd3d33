// Runs the GPU kernels of knn_cuda.cu on the CPU: the first part of that file once more, as C++.
//
// Threads of a thread block are fibers, which run in a random order from one barrier or warp operation to the next;
// thread blocks run one after the other, now from the first to the last, now from the last to the first.
// What the GPU would not forgive is an error here: a barrier or warp operation that not all threads reach, memory
// touched outside a tensor or outside the shared memory asked for. Shared memory starts as NaN. Fragments are spread
// over the lanes in a scrambled way, unlike any GPU's.

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#define KERNEL static void
#define DEVICE inline

typedef unsigned short half_bits;

struct Place {
    unsigned x, y;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline unsigned char* shared_memory;

namespace emulate {

constexpr int WARP = 32, STACK = 128 * 1024;
enum State { READY, AT_BARRIER, AT_WARP_OPERATION, DONE };
enum Operation { SYNC, SHUFFLE, BALLOT, MULTIPLICATION, MEMORY };

struct Fiber {
    jmp_buf resume;
    bool started;
    State state;
    Operation operation;
    unsigned turn;  // of the two exchange buffers
    std::vector<char> stack;
};

// What the lanes of a warp show each other; two in turn, so that none is overwritten while another lane still reads.
struct Exchange {
    unsigned words[WARP];
    float left[256], right[256];
};

inline std::vector<Fiber> fibers;
inline std::vector<Exchange> exchanges;
inline int current, threads;
inline unsigned random_state;
inline jmp_buf scheduler;
inline sigjmp_buf fault;
inline Place block_index, grid_size;
inline const char* complaint;
inline void (*kernel)(void**);
inline void** arguments;

inline void fiber_main() {
    for (;;) {
        kernel(arguments);
        fibers[current].state = DONE;
        if (!_setjmp(fibers[current].resume)) _longjmp(scheduler, 1);
    }
}

inline void resume(int index) {
    current = index;
    if (_setjmp(scheduler)) return;
    Fiber& fiber = fibers[index];
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
}

inline void wait(State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].resume)) _longjmp(scheduler, 1);
}

// The buffer of this operation; before and after it all lanes are together.
inline Exchange& exchange() { return exchanges[current / WARP * 2 + fibers[current].turn]; }
inline void wait_for_warp(Operation operation) {
    fibers[current].operation = operation;
    wait(AT_WARP_OPERATION);
    fibers[current].turn ^= 1;
}

inline unsigned random_below(unsigned limit) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % limit;
}

// Runs each lane to its next barrier or warp operation; true if they may go on.
inline bool run_warp(int first) {
    const unsigned start = random_below(WARP), step = 2 * random_below(WARP / 2) + 1;
    for (unsigned i = 0; i < WARP; i++) {
        const int lane = first + (start + i * step) % WARP;
        if (fibers[lane].state == READY) resume(lane);
    }
    for (int lane = first; lane < first + WARP; lane++)
        if (fibers[lane].state != AT_WARP_OPERATION || fibers[lane].operation != fibers[first].operation) return false;
    for (int lane = first; lane < first + WARP; lane++) fibers[lane].state = READY;
    return true;
}

// Null, or what went wrong.
inline const char* run_block() {
    for (int i = 0; i < threads; i++) fibers[i].state = READY;
    const int warps = threads / WARP;
    for (;;) {
        const unsigned start = random_below(warps);
        for (int i = 0; i < warps; i++)
            while (run_warp((start + i) % warps * WARP)) {
            }
        for (int i = 0; i < threads; i++) {
            if (fibers[i].state == AT_WARP_OPERATION) return "a warp operation that not all lanes reach";
            if (fibers[i].state != fibers[0].state) return "a barrier that not all threads reach";
        }
        if (fibers[0].state == DONE) return nullptr;
        for (int i = 0; i < threads; i++) fibers[i].state = READY;
    }
}

[[noreturn]] inline void fail(const char* message) {
    complaint = message;
    siglongjmp(fault, 1);
}
inline void on_fault(int) { fail("memory outside a tensor, or a misaligned address"); }

// A copy of memory that ends where a page begins that cannot be touched, but for the alignment; one lies before, too.
struct Guarded {
    static constexpr size_t PAGE = 4096;
    unsigned char *pages, *copy, *original;
    size_t bytes, length;

    Guarded(void* memory, size_t bytes) : original(static_cast<unsigned char*>(memory)), bytes(bytes) {
        length = (bytes + 31 + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
        pages = static_cast<unsigned char*>(mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(pages + PAGE, length - 2 * PAGE, PROT_READ | PROT_WRITE);
        memset(pages + PAGE, 0xff, length - 2 * PAGE);
        copy = pages + length - PAGE - bytes;
        copy -= (copy - original) & 31;
        memcpy(copy, original, bytes);
    }
    // Whether what lies around the copy is as it was.
    bool intact() const {
        for (const unsigned char* i = pages + PAGE; i < pages + length - PAGE; i++)
            if ((i < copy || i >= copy + bytes) && *i != 0xff) return false;
        return true;
    }
    void give_back() {
        memcpy(original, copy, bytes);
        munmap(pages, length);
    }
};

// Runs a kernel over a grid; false and a message if it does what a GPU would not forgive. bytes: of what each argument
// points to; 0: a null pointer; negative: a number.
inline bool run(void (*invoke)(void**), unsigned x, unsigned y, int threads_of_block, int shared_bytes, void** given,
                const int64_t* bytes, int count, const char** message) {
    std::vector<Guarded> tensors;
    std::vector<void*> ready(given, given + count);
    for (int i = 0; i < count; i++)
        if (bytes[i] > 0) tensors.emplace_back(*static_cast<void**>(given[i]), bytes[i]);
    for (int i = 0, tensor = 0; i < count; i++)
        if (bytes[i] > 0) ready[i] = &tensors[tensor++].copy;
    alignas(128) static unsigned char whole_shared_memory[128 * 1024];
    Guarded shared_copy(whole_shared_memory, shared_bytes);
    shared_memory = shared_copy.copy;

    kernel = invoke, arguments = ready.data(), grid_size = {x, y}, threads = threads_of_block, complaint = nullptr;
    if (fibers.size() < static_cast<size_t>(threads)) {
        fibers.resize(threads);
        for (Fiber& fiber : fibers) fiber.started = false, fiber.stack.resize(STACK);
        exchanges.resize(threads / WARP * 2);
    }
    static std::vector<char> signal_stack(64 * 1024);
    stack_t alternative = {}, alternative_before;
    alternative.ss_sp = signal_stack.data(), alternative.ss_size = signal_stack.size();
    sigaltstack(&alternative, &alternative_before);
    struct sigaction action = {}, before;
    action.sa_handler = on_fault, action.sa_flags = SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
    if (!sigsetjmp(fault, 1))
        for (unsigned i = 0, backwards = random_below(2); i < x * y && !complaint; i++) {
            const unsigned block = backwards ? x * y - 1 - i : i;
            block_index = {block % x, block / x};
            memset(shared_memory, 0xff, shared_bytes);
            complaint = run_block();
            if (!complaint && !shared_copy.intact()) complaint = "shared memory beyond what was asked for";
        }
    sigaction(SIGSEGV, &before, nullptr);
    sigaltstack(&alternative_before, nullptr);
    for (Guarded& tensor : tensors) {
        if (!complaint && !tensor.intact()) complaint = "a tensor's surroundings were written";
        tensor.give_back();
    }
    shared_copy.give_back();
    if (complaint)
        for (Fiber& fiber : fibers) fiber.started = false;
    *message = complaint;
    return !complaint;
}

template <class... Parameters, size_t... INDEX>
void unpack(void (*function)(Parameters...), void** from, std::index_sequence<INDEX...>) {
    function(*static_cast<Parameters*>(from[INDEX])...);
}
template <class... Parameters>
void unpack(void (*function)(Parameters...), void** from) {
    unpack(function, from, std::index_sequence_for<Parameters...>());
}
template <class... Parameters>
constexpr int count_parameters(void (*)(Parameters...)) {
    return sizeof...(Parameters);
}

// Where elements of a matrix lie among the lanes: the place of each is another number below 256.
constexpr int scrambled(int element, int by) { return (element * by + 13) & 255; }
inline int element_at(int place, int by) {
    static std::vector<int> inverse[256];
    if (inverse[by].empty()) {
        inverse[by].resize(256);
        for (int i = 0; i < 256; i++) inverse[by][scrambled(i, by)] = i;
    }
    return inverse[by][place];
}

inline void check_fragment(const void* address, int stride_bytes) {
    if (reinterpret_cast<uintptr_t>(address) % 32 || stride_bytes % 16) fail("a fragment's address or stride");
}

}  // namespace emulate

// A function for ctypes.
#define EMULATE(name)                                                                                               \
    extern "C" int emulate_##name(unsigned x, unsigned y, int threads, int shared_bytes, void** arguments,           \
                                  const int64_t* bytes, int count, const char** message) {                          \
        if (count != emulate::count_parameters(name)) {                                                             \
            *message = "another number of arguments than the kernel has";                                           \
            return 0;                                                                                               \
        }                                                                                                           \
        return emulate::run([](void** from) { emulate::unpack(name, from); }, x, y, threads, shared_bytes,           \
                            arguments, bytes, count, message);                                                      \
    }

#define threadIdx (Place{static_cast<unsigned>(emulate::current), 0})
#define blockIdx emulate::block_index
#define gridDim emulate::grid_size

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float infinity() { return INFINITY; }
inline float not_a_number() { return NAN; }
inline float to_float(half_bits bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline half_bits to_half(float value) {
    const _Float16 rounded = value;
    half_bits bits;
    memcpy(&bits, &rounded, sizeof bits);
    return bits;
}
inline float exp2_fast(float value) { return exp2f(value); }

inline void sync_block() { emulate::wait(emulate::AT_BARRIER); }
inline void sync_warp() { emulate::wait_for_warp(emulate::SYNC); }
inline float shuffle_xor(float value, int mask) {
    emulate::Exchange& exchange = emulate::exchange();
    memcpy(&exchange.words[emulate::current % 32], &value, sizeof value);
    emulate::wait_for_warp(emulate::SHUFFLE);
    memcpy(&value, &exchange.words[(emulate::current % 32) ^ mask], sizeof value);
    return value;
}
inline unsigned ballot(bool value) {
    emulate::Exchange& exchange = emulate::exchange();
    exchange.words[emulate::current % 32] = value;
    emulate::wait_for_warp(emulate::BALLOT);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= exchange.words[i] << i;
    return bits;
}

enum Layout { BY_ROW, BY_COLUMN };
template <Layout LAYOUT>
struct Left {
    static constexpr int SCRAMBLE = LAYOUT == BY_ROW ? 77 : 91;
    half_bits halves[8];
};
template <Layout LAYOUT>
struct Right {
    static constexpr int SCRAMBLE = LAYOUT == BY_ROW ? 45 : 113;
    half_bits halves[8];
};
struct Sums {
    static constexpr int SCRAMBLE = 29;
    float values[8];
};

// Calls use(i, row, column) for the elements that this lane holds.
template <class Fragment, class Use>
inline void each_element(Use use) {
    for (int i = 0; i < 8; i++) {
        const int element = emulate::element_at(i * 32 + emulate::current % 32, Fragment::SCRAMBLE);
        use(i, element / 16, element % 16);
    }
}

// Memory is read before the lanes meet and written after: meeting orders no memory, only sync_warp does.
template <template <Layout> class Fragment, Layout LAYOUT>
inline void load_shared(Fragment<LAYOUT>& to, const half_bits* from, int stride) {
    emulate::check_fragment(from, stride * 2);
    each_element<Fragment<LAYOUT>>([&](int i, int row, int column) {
        to.halves[i] = LAYOUT == BY_ROW ? from[row * stride + column] : from[column * stride + row];
    });
    emulate::wait_for_warp(emulate::MEMORY);
}
inline void load_shared(Sums& to, const float* from, int stride) {
    emulate::check_fragment(from, stride * 4);
    each_element<Sums>([&](int i, int row, int column) { to.values[i] = from[row * stride + column]; });
    emulate::wait_for_warp(emulate::MEMORY);
}
inline void load_global(Left<BY_ROW>& to, const half_bits* from, int stride) { load_shared(to, from, stride); }
inline void store_shared(float* to, const Sums& from, int stride) {
    emulate::check_fragment(to, stride * 4);
    emulate::wait_for_warp(emulate::MEMORY);
    each_element<Sums>([&](int i, int row, int column) { to[row * stride + column] = from.values[i]; });
}
inline void store_shared_by_column(float* to, const Sums& from, int stride) {
    emulate::check_fragment(to, stride * 4);
    emulate::wait_for_warp(emulate::MEMORY);
    each_element<Sums>([&](int i, int row, int column) { to[column * stride + row] = from.values[i]; });
}
inline void store_global(float* to, const Sums& from, int stride) { store_shared(to, from, stride); }

template <Layout LEFT, Layout RIGHT>
inline void multiply_add(Sums& sums, const Left<LEFT>& left, const Right<RIGHT>& right) {
    emulate::Exchange& exchange = emulate::exchange();
    each_element<Left<LEFT>>(
        [&](int i, int row, int column) { exchange.left[row * 16 + column] = to_float(left.halves[i]); });
    each_element<Right<RIGHT>>(
        [&](int i, int row, int column) { exchange.right[column * 16 + row] = to_float(right.halves[i]); });
    emulate::wait_for_warp(emulate::MULTIPLICATION);
    each_element<Sums>([&](int i, int row, int column) {
        for (int j = 0; j < 16; j++) sums.values[i] += exchange.left[row * 16 + j] * exchange.right[column * 16 + j];
    });
}
