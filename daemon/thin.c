/* thin.c - see thin.h. store_tidy.c says the same in SQL; a test compares them. */
#include "daemon/thin.h"

#include "daemon/job.h"

uint64_t thin_every(uint64_t seq)
{
    return seq <= THIN_ROWS ? 1 : (seq + THIN_ROWS - 1) / THIN_ROWS;
}

/* Row 1 is the start, 2 the first training row. After the last training row there may be
 * an evaluation and a summary. */
bool thin_keeps(uint8_t kind, uint64_t n, uint64_t last, uint64_t every)
{
    return kind != JOB_REPORT_TRAIN || n <= 2 || n + 3 > last || n % every == 0;
}
