// Runs a recorded sequence of kernel calls: no Python between them.
#include "graph.h"

extern "C" void penstock_graph_run(const penstock::RecordedCall *calls, int count) {
    for (int i = 0; i < count; ++i) calls[i].invoke(calls[i].arguments);
}
