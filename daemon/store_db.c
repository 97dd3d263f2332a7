/* store_db.c - see store_db.h: SQLite's ways. */
#include "daemon/store_db.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>

int store_db_err(sqlite3 *db, int rc, struct err *err)
{
    const int os = sqlite3_system_errno(db);
    int r = -EIO;

    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return 0;
    case SQLITE_FULL:
        r = -ENOSPC;
        break;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        r = os == ENOSPC || os == EDQUOT ? -ENOSPC : -EIO;
        break;
    case SQLITE_NOMEM:
        r = -ENOMEM;
        break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        r = -EBUSY;
        break;
    case SQLITE_CONSTRAINT:
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        r = -EINVAL;
        break;
    }
    return err_set(err, r, "SQLite: %s", sqlite3_errmsg(db));
}

int store_db_bind(sqlite3_stmt *q, const char *types, ...)
{
    va_list ap;
    int rc = SQLITE_OK;

    va_start(ap, types);
    for (int i = 1; types[i - 1] && rc == SQLITE_OK; i++) {
        const void *p;
        int64_t v;
        size_t n;
        switch (types[i - 1]) {
        case 'i':
            rc = sqlite3_bind_int64(q, i, va_arg(ap, int64_t));
            break;
        case 'n':
            v = va_arg(ap, int64_t);
            rc = v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_int64(q, i, v);
            break;
        case 'd':
            rc = sqlite3_bind_double(q, i, va_arg(ap, double));
            break;
        case 's':
            rc = sqlite3_bind_text(q, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
            break;
        case 'b':
            p = va_arg(ap, const void *);
            n = va_arg(ap, size_t);
            rc = sqlite3_bind_blob64(q, i, p ? p : "", n, SQLITE_STATIC);
            break;
        default:
            rc = SQLITE_MISUSE;
        }
    }
    va_end(ap);
    return rc == SQLITE_OK ? 0 : rc == SQLITE_NOMEM ? -ENOMEM : -EINVAL;
}

int store_db_run(sqlite3 *db, sqlite3_stmt *q, struct err *err)
{
    int rc, r;

    while ((rc = sqlite3_step(q)) == SQLITE_ROW)
        ;
    r = store_db_err(db, rc, err);
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
    return r;
}
