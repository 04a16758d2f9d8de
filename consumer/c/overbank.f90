! Overbank for Fortran: what overbank.h declares, by iso_c_binding. Compile it with the program that uses it:
!
!   gfortran overbank.f90 program.f90 $(pkg-config --libs overbank)
!
! A handle is a type(c_ptr). Texts that go in end in c_null_char; overbank_text makes a Fortran text of one that comes out.
module overbank
  use, intrinsic :: iso_c_binding
  implicit none
  public

  integer(c_int), parameter :: OVERBANK_OK = 0
  integer(c_int), parameter :: OVERBANK_OTHER = 1
  integer(c_int), parameter :: OVERBANK_USAGE = 2
  integer(c_int), parameter :: OVERBANK_AUTHD_UNREACHABLE = 3
  integer(c_int), parameter :: OVERBANK_NOT_TRUSTED = 4
  integer(c_int), parameter :: OVERBANK_AUTHD_KEY_CHANGED = 5
  integer(c_int), parameter :: OVERBANK_NO_ROOM = 6
  integer(c_int), parameter :: OVERBANK_LEASE_OVER = 7
  integer(c_int), parameter :: OVERBANK_LEASE_LOST = 8
  integer(c_int), parameter :: OVERBANK_CONTENTS = 9
  integer(c_int), parameter :: OVERBANK_DOES_NOT_FIT = 10
  integer(c_int), parameter :: OVERBANK_DEADLINE = 11
  integer(c_int), parameter :: OVERBANK_LOCAL = 12
  integer(c_int), parameter :: OVERBANK_DEVICE = 13
  integer(c_int), parameter :: OVERBANK_PROPOSED = 14
  integer(c_int), parameter :: OVERBANK_BUSY = 100
  integer(c_int), parameter :: OVERBANK_CLOSED = 101
  integer(c_int), parameter :: OVERBANK_PANIC = 102

  integer(c_int32_t), parameter :: OVERBANK_ON_UNKNOWN_DEFAULT = 0
  integer(c_int32_t), parameter :: OVERBANK_ON_UNKNOWN_REFUSE = 1
  integer(c_int32_t), parameter :: OVERBANK_ON_UNKNOWN_ACCEPT_SEALED = 2
  integer(c_int32_t), parameter :: OVERBANK_ON_UNKNOWN_ACCEPT = 3

  integer(c_int32_t), parameter :: OVERBANK_FAULTS_SIGNAL = 0
  integer(c_int32_t), parameter :: OVERBANK_FAULTS_THREAD = 1

  integer, parameter :: OVERBANK_FINGERPRINT_LEN = 41
  integer, parameter :: OVERBANK_LEASE_ID_LEN = 33

  type, bind(c) :: overbank_config
    integer(c_size_t) :: size = 0
    type(c_ptr) :: authd = c_null_ptr
    type(c_ptr) :: home = c_null_ptr
    type(c_ptr) :: leases = c_null_ptr
    type(c_ptr) :: authd_fingerprint = c_null_ptr
    integer(c_int64_t) :: deadline_ms = 0
  end type overbank_config

  type, bind(c) :: overbank_attach_options
    integer(c_size_t) :: size = 0
    type(c_ptr) :: device = c_null_ptr
    type(c_ptr) :: address = c_null_ptr
    integer(c_int32_t) :: on_unknown = 0
    integer(c_int32_t) :: lanes = 0
    integer(c_int64_t) :: spin_ns = 0
    integer(c_int64_t) :: deadline_ms = 0
  end type overbank_attach_options

  type, bind(c) :: overbank_share_options
    integer(c_size_t) :: size = 0
    integer(c_int64_t) :: first = 0
    integer(c_int64_t) :: end = 0
    integer(c_int64_t) :: ttl_ms = 0
    integer(c_int32_t) :: read_only = 0
    integer(c_int32_t) :: reserved = 0
  end type overbank_share_options

  type, bind(c) :: overbank_region_options
    integer(c_size_t) :: size = 0
    integer(c_int64_t) :: local_bytes = 0
    integer(c_int32_t) :: page = 0
    integer(c_int32_t) :: faults = 0
    integer(c_int64_t) :: ahead_bytes = 0
    integer(c_int32_t) :: fetchers = 0
    integer(c_int32_t) :: reserved = 0
    integer(c_int64_t) :: patience_ms = 0
    integer(c_int64_t) :: renew_to_ms = 0
    type(c_ptr) :: attach = c_null_ptr
  end type overbank_region_options

  type, bind(c) :: overbank_stats
    integer(c_size_t) :: size = 0
    integer(c_int64_t) :: bytes = 0
    integer(c_int64_t) :: page_bytes = 0
    integer(c_int64_t) :: local_bytes = 0
    integer(c_int64_t) :: resident_bytes = 0
    integer(c_int64_t) :: peak_resident_bytes = 0
    integer(c_int64_t) :: faults = 0
    integer(c_int64_t) :: write_faults = 0
    integer(c_int64_t) :: fetched = 0
    integer(c_int64_t) :: ahead = 0
    integer(c_int64_t) :: zeroed = 0
    integer(c_int64_t) :: evicted = 0
    integer(c_int64_t) :: stored = 0
    integer(c_int64_t) :: emptied = 0
    integer(c_int64_t) :: kept = 0
    integer(c_int64_t) :: waits = 0
    integer(c_int64_t) :: mended = 0
    integer(c_int64_t) :: fault_p50_ns = 0
    integer(c_int64_t) :: fault_p99_ns = 0
  end type overbank_stats

  interface
    ! What went in as c_null_ptr is left out; c_loc gives the address of a struct of options.
    integer(c_int) function overbank_connect(config, client) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: config
      type(c_ptr), intent(out) :: client
    end function overbank_connect

    integer(c_int) function overbank_client_fingerprint(client, text, len) bind(c)
      import :: c_int, c_ptr, c_char, c_size_t
      type(c_ptr), value :: client
      character(kind=c_char), intent(out) :: text(*)
      integer(c_size_t), value :: len
    end function overbank_client_fingerprint

    integer(c_int) function overbank_client_authd(client, text, len, first_contact) bind(c)
      import :: c_int, c_ptr, c_char, c_size_t, c_bool
      type(c_ptr), value :: client
      character(kind=c_char), intent(out) :: text(*)
      integer(c_size_t), value :: len
      logical(c_bool), intent(out) :: first_contact
    end function overbank_client_authd

    integer(c_int) function overbank_client_close(client) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: client
    end function overbank_client_close

    integer(c_int) function overbank_lease_create(client, bytes, ttl_ms, block, lease) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_int32_t
      type(c_ptr), value :: client
      integer(c_int64_t), value :: bytes, ttl_ms
      integer(c_int32_t), value :: block
      type(c_ptr), intent(out) :: lease
    end function overbank_lease_create

    integer(c_int) function overbank_lease_open(client, id, lease) bind(c)
      import :: c_int, c_ptr, c_char
      type(c_ptr), value :: client
      character(kind=c_char), intent(in) :: id(*)
      type(c_ptr), intent(out) :: lease
    end function overbank_lease_open

    integer(c_int) function overbank_lease_attach(lease, options) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: lease, options
    end function overbank_lease_attach

    integer(c_int) function overbank_lease_read(lease, offset, buffer, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: lease, buffer
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_lease_read

    integer(c_int) function overbank_lease_write(lease, offset, bytes, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: lease, bytes
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_lease_write

    integer(c_int) function overbank_lease_renew(lease, ttl_ms, left_ms) bind(c)
      import :: c_int, c_ptr, c_int64_t
      type(c_ptr), value :: lease
      integer(c_int64_t), value :: ttl_ms
      integer(c_int64_t), intent(out) :: left_ms
    end function overbank_lease_renew

    integer(c_int) function overbank_lease_bytes(lease, bytes) bind(c)
      import :: c_int, c_ptr, c_int64_t
      type(c_ptr), value :: lease
      integer(c_int64_t), intent(out) :: bytes
    end function overbank_lease_bytes

    integer(c_int) function overbank_lease_block(lease, block) bind(c)
      import :: c_int, c_ptr, c_int32_t
      type(c_ptr), value :: lease
      integer(c_int32_t), intent(out) :: block
    end function overbank_lease_block

    integer(c_int) function overbank_lease_reach(lease, first, end) bind(c)
      import :: c_int, c_ptr, c_int64_t
      type(c_ptr), value :: lease
      integer(c_int64_t), intent(out) :: first, end
    end function overbank_lease_reach

    integer(c_int) function overbank_lease_read_only(lease, read_only) bind(c)
      import :: c_int, c_ptr, c_bool
      type(c_ptr), value :: lease
      logical(c_bool), intent(out) :: read_only
    end function overbank_lease_read_only

    integer(c_int) function overbank_lease_id(lease, text, len) bind(c)
      import :: c_int, c_ptr, c_char, c_size_t
      type(c_ptr), value :: lease
      character(kind=c_char), intent(out) :: text(*)
      integer(c_size_t), value :: len
    end function overbank_lease_id

    integer(c_int) function overbank_lease_time_left_ms(lease, left_ms) bind(c)
      import :: c_int, c_ptr, c_int64_t
      type(c_ptr), value :: lease
      integer(c_int64_t), intent(out) :: left_ms
    end function overbank_lease_time_left_ms

    integer(c_int) function overbank_lease_freshness_is_known(lease, known) bind(c)
      import :: c_int, c_ptr, c_bool
      type(c_ptr), value :: lease
      logical(c_bool), intent(out) :: known
    end function overbank_lease_freshness_is_known

    integer(c_int) function overbank_lease_close(lease) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: lease
    end function overbank_lease_close

    integer(c_int) function overbank_lease_release(lease, patience_ms, wiped) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_bool
      type(c_ptr), value :: lease
      integer(c_int64_t), value :: patience_ms
      logical(c_bool), intent(out) :: wiped
    end function overbank_lease_release

    integer(c_int) function overbank_lease_split(lease, lanes, count) bind(c)
      import :: c_int, c_ptr, c_size_t
      type(c_ptr), value :: lease
      type(c_ptr), intent(out) :: lanes(*)
      integer(c_size_t), value :: count
    end function overbank_lease_split

    integer(c_int) function overbank_lane_read(lane, offset, buffer, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: lane, buffer
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_lane_read

    integer(c_int) function overbank_lane_write(lane, offset, bytes, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: lane, bytes
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_lane_write

    integer(c_int) function overbank_lane_close(lane) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: lane
    end function overbank_lane_close

    integer(c_int) function overbank_lease_share(lease, to, options, path) bind(c)
      import :: c_int, c_ptr, c_char
      type(c_ptr), value :: lease, options
      character(kind=c_char), intent(in) :: to(*), path(*)
    end function overbank_lease_share

    integer(c_int) function overbank_share_open(client, bundle, len, from, lease) bind(c)
      import :: c_int, c_ptr, c_size_t
      type(c_ptr), value :: client, bundle, from
      integer(c_size_t), value :: len
      type(c_ptr), intent(out) :: lease
    end function overbank_share_open

    integer(c_int) function overbank_share_open_file(client, path, from, lease) bind(c)
      import :: c_int, c_ptr, c_char
      type(c_ptr), value :: client, from
      character(kind=c_char), intent(in) :: path(*)
      type(c_ptr), intent(out) :: lease
    end function overbank_share_open_file

    integer(c_int) function overbank_region_open(lease, options, region) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: lease, options
      type(c_ptr), intent(out) :: region
    end function overbank_region_open

    ! c_f_pointer makes an array of what is at start.
    integer(c_int) function overbank_region_memory(region, start, len) bind(c)
      import :: c_int, c_ptr, c_size_t
      type(c_ptr), value :: region
      type(c_ptr), intent(out) :: start
      integer(c_size_t), intent(out) :: len
    end function overbank_region_memory

    integer(c_int) function overbank_region_lease_id(region, text, len) bind(c)
      import :: c_int, c_ptr, c_char, c_size_t
      type(c_ptr), value :: region
      character(kind=c_char), intent(out) :: text(*)
      integer(c_size_t), value :: len
    end function overbank_region_lease_id

    integer(c_int) function overbank_region_stats(region, stats) bind(c)
      import :: c_int, c_ptr, overbank_stats
      type(c_ptr), value :: region
      type(overbank_stats), intent(inout) :: stats
    end function overbank_region_stats

    integer(c_int) function overbank_region_check(region) bind(c)
      import :: c_int, c_ptr
      type(c_ptr), value :: region
    end function overbank_region_check

    integer(c_int) function overbank_region_fetch(region, offset, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: region
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_region_fetch

    integer(c_int) function overbank_region_hold(region, offset, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: region
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_region_hold

    integer(c_int) function overbank_region_unhold(region, offset, len) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: region
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
    end function overbank_region_unhold

    integer(c_int) function overbank_region_discard(region, offset, len, zeroed) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_size_t
      type(c_ptr), value :: region
      integer(c_int64_t), value :: offset
      integer(c_size_t), value :: len
      integer(c_int64_t), intent(out) :: zeroed
    end function overbank_region_discard

    integer(c_int) function overbank_region_release(region, patience_ms, wiped) bind(c)
      import :: c_int, c_ptr, c_int64_t, c_bool
      type(c_ptr), value :: region
      integer(c_int64_t), value :: patience_ms
      logical(c_bool), intent(out) :: wiped
    end function overbank_region_release

    type(c_ptr) function overbank_strerror(status) bind(c)
      import :: c_int, c_ptr
      integer(c_int), value :: status
    end function overbank_strerror

    type(c_ptr) function overbank_last_error() bind(c)
      import :: c_ptr
    end function overbank_last_error

    type(c_ptr) function overbank_version() bind(c)
      import :: c_ptr
    end function overbank_version

    integer(c_size_t) function overbank_strlen(text) bind(c, name="strlen")
      import :: c_ptr, c_size_t
      type(c_ptr), value :: text
    end function overbank_strlen
  end interface

contains

  ! A text of the library's as a Fortran text.
  function overbank_text(from) result(text)
    type(c_ptr), intent(in) :: from
    character(len=:), allocatable :: text
    character(kind=c_char), pointer :: letters(:)
    integer :: at
    call c_f_pointer(from, letters, [overbank_strlen(from)])
    allocate (character(len=size(letters)) :: text)
    do at = 1, size(letters)
      text(at:at) = letters(at)
    end do
  end function overbank_text

end module overbank
